"""The page's token, which a login by cookie needs to change something."""

from django.http import HttpRequest, HttpResponse
from rest_framework.authentication import CSRFCheck

from relay.exceptions import CsrfFailed
from relay.transports.origins import origin_allowed

from . import bodies

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def check_csrf(request: HttpRequest, *, origin_proves: bool = False) -> None:
    """Demand the token of a request that a page elsewhere could have made a browser send. Errors: CsrfFailed.

    With `origin_proves`, a request of one of our pages, or of an origin in the CORS settings, needs none.
    """
    if request.method in SAFE_METHODS:
        return
    if origin_proves and request.headers.get("Origin") and origin_allowed(request):
        return
    if request.content_type == bodies.FORM:
        # The check looks into the form; a broken one must be our refusal, not its crash.
        bodies.check_length(request)
        bodies.read_form(request)
    check = CSRFCheck(lambda request: HttpResponse())
    check.process_request(request)
    reason = check.process_view(request, lambda request: HttpResponse(), (), {})
    if reason:
        raise CsrfFailed("The CSRF token is missing or wrong; reload the page.", reason=str(reason))
