"""System checks of the sandbox: a runner that cannot be used is told at start, not at the first run."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured

from comm.exceptions import CommError

from .conf import sandbox_settings
from .supervisor import make_runner


@register()
def check_sandbox(**kwargs: Any) -> list[CheckMessage]:
    """SANDBOX has only known keys, and the runners of the settings can be used here."""
    try:
        conf = sandbox_settings()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="comm.E010")]
    found: list[CheckMessage] = []
    for setting, name in (("SANDBOX['RUNNER']", conf.RUNNER), ("DEMO_SANDBOX", settings.DEMO_SANDBOX)):
        try:
            if name:
                make_runner(name)
        except ImportError as error:
            found.append(Error(f"{setting} names {name!r}, which is no runner: {error}", id="comm.E011"))
        except CommError as error:
            hint = "What is to run there will fail, with this reason."
            found.append(Warning(f"{setting}: {error}", hint=hint, id="comm.W010"))
    return found
