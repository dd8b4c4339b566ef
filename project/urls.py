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
