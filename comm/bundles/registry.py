"""Which bundles there are: `COMM["BUNDLES"]`, id → dotted path."""

import logging
from functools import cache
from typing import Any

from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

from comm.conf import comm_settings
from comm.exceptions import BundleUnknown

from .base import Bundle

logger = logging.getLogger(__name__)

_made: list[Bundle] = []


def bundle_ids() -> list[str]:
    """The ids of the registered bundles."""
    return list(comm_settings().BUNDLES)


def known_bundle_id(bundle_id: str) -> str:
    """Return the id, or the default one for an empty id. Errors: BundleUnknown."""
    conf = comm_settings()
    name = bundle_id or conf.DEFAULT_BUNDLE
    if name not in conf.BUNDLES:
        raise BundleUnknown(f"bundle_id: there is no bundle {name!r}; there are {', '.join(conf.BUNDLES)}")
    return name


@cache
def get_bundle(bundle_id: str = "") -> Bundle:
    """Return the bundle of an id, made on first use. Errors: BundleUnknown, ImportError."""
    found: Any = import_string(comm_settings().BUNDLES[known_bundle_id(bundle_id)])
    bundle = found if isinstance(found, Bundle) else found()
    if not isinstance(bundle, Bundle):
        raise TypeError(f"COMM['BUNDLES'][{bundle_id!r}] must lead to a Bundle, not {type(bundle).__name__}")
    _made.append(bundle)
    return bundle


def load_bundles() -> None:
    """Import every registered bundle: what it imports would hold up the event loop at its first turn."""
    for bundle_id, path in comm_settings().BUNDLES.items():
        try:
            import_string(path)
        except ImportError:
            # The other bundles can answer; the turns of this one tell.
            logger.exception("Bundle %s cannot be imported", bundle_id)


async def aclose_bundles() -> None:
    """Close the bundles that this process has used; the next `get_bundle` makes new ones."""
    made, _made[:] = list(_made), []
    get_bundle.cache_clear()
    for bundle in made:
        try:
            await bundle.aclose()
        except Exception:
            # The process stops: the other bundles have something to close too.
            logger.exception("Bundle %s could not be closed", type(bundle).__name__)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "COMM":
        get_bundle.cache_clear()
