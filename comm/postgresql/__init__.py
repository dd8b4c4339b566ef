"""Django's PostgreSQL backend with the tenants' wall: what `ENGINE` names where `TENANT_WALL` is on."""
