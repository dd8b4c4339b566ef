"""Every URL that Django serves; the streams are mounted in asgi.py."""

from django.contrib import admin
from django.urls import include, path

admin.site.site_header = "Backchannel"
admin.site.site_title = "Backchannel"
admin.site.index_title = "Conversations, turns and recordings"

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("relay.urls")),
]

# The API answers in JSON also where Django itself refuses.
handler400 = "relay.ingress.errors.bad_request"
handler403 = "relay.ingress.errors.permission_denied"
handler404 = "relay.ingress.errors.not_found"
handler500 = "relay.ingress.errors.server_error"
