"""Every setting of the project; the only place that reads the environment.

Each value comes from the environment (or a `.env` file beside manage.py) and has a default; `.env.example`
lists them all. With no environment at all this is a development server: one process, SQLite, no service.
"""

from pathlib import Path

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
if (BASE_DIR / ".env").is_file():
    env.read_env(str(BASE_DIR / ".env"))

DATA_DIR = Path(env.str("DATA_DIR", default=str(BASE_DIR / "var")))
DATA_DIR.mkdir(parents=True, exist_ok=True)

# --- security -------------------------------------------------------------------------------------
DEBUG = env.bool("DEBUG", default=True)
INSECURE_DEVELOPMENT_KEY = "insecure-development-key-set-SECRET_KEY-in-production"
SECRET_KEY = env.str("SECRET_KEY", default=INSECURE_DEVELOPMENT_KEY)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["*"] if DEBUG else [])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
HTTPS = env.bool("HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^health$"]
SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", default=31_536_000 if HTTPS else 0)
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
if env.bool("BEHIND_PROXY", default=False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "relay.ingress.errors.csrf_failure"
# The second wall between tenants: PostgreSQL's row-level security; docs/tenants.md says how it is put up.
TENANT_WALL = env.bool("TENANT_WALL", default=False)

# --- applications ---------------------------------------------------------------------------------
INSTALLED_APPS = [
    "daphne",  # first: it replaces runserver
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "corsheaders",
    "rest_framework",
    "channels",
    "comm",
    "relay",
    "recorder",
]

MIDDLEWARE = [
    "corsheaders.middleware.CorsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
if TENANT_WALL:
    # Last: it asks who is logged in.
    MIDDLEWARE.append("relay.tenants.TenantMiddleware")

ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# --- database -------------------------------------------------------------------------------------
DATABASE_URL = env.str("DATABASE_URL", default="") or f"sqlite:///{DATA_DIR / 'backchannel.sqlite3'}"
DATABASES = {"default": env.db_url_config(DATABASE_URL)}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Readers never wait for the writer (WAL); a transaction takes the write lock when it begins, so that
    # it can wait for it: one that upgrades later fails at once with "database is locked".
    DATABASES["default"]["OPTIONS"] = {
        "timeout": env.float("SQLITE_BUSY_TIMEOUT_SECONDS", default=20.0),
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
ON_POSTGRESQL = DATABASES["default"]["ENGINE"].endswith("postgresql")
if ON_POSTGRESQL:
    # procrastinate keeps the turns that wait for workers as jobs; its tables are migrated, its admin shows them.
    INSTALLED_APPS.append("procrastinate.contrib.django")
    PROCRASTINATE_IMPORT_PATHS = ["project.tasks"]
    PROCRASTINATE_AUTODISCOVER_MODULE_NAME = None
    # A server that is gone without a word is given up in seconds, not in the kernel's quarter of an hour; what the
    # URL says goes first. A process that stands still in mid-transaction must not hold its locks for longer than
    # the lease of the turns that wait for them.
    DATABASES["default"]["OPTIONS"] = {
        "connect_timeout": 5,
        "tcp_user_timeout": 8000,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "options": "-c idle_in_transaction_session_timeout=8s",
        **DATABASES["default"].get("OPTIONS", {}),
    }
    if TENANT_WALL:
        DATABASES["default"]["ENGINE"] = "comm.postgresql"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- people ---------------------------------------------------------------------------------------
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "/admin/login/"
ADMIN_USERNAME = env.str("ADMIN_USERNAME", default="admin")
ADMIN_PASSWORD = env.str("ADMIN_PASSWORD", default="")

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

# --- files ----------------------------------------------------------------------------------------
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATIC_ROOT.mkdir(exist_ok=True)
WHITENOISE_USE_FINDERS = True
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
    # No base_url: what users send is never served as a file of the site.
    "attachments": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": str(DATA_DIR / "attachments"), "base_url": None},
    },
}
# Above the contract's own limits, so that a refusal is our answer and not a cut connection.
DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024 * 1024
DATA_UPLOAD_MAX_NUMBER_FILES = 200

# --- cross-origin clients -------------------------------------------------------------------------
CORS_ALLOWED_ORIGINS = env.list("CORS_ALLOWED_ORIGINS", default=[])
CORS_ALLOWED_ORIGIN_REGEXES = env.list("CORS_ALLOWED_ORIGIN_REGEXES", default=[])
CORS_ALLOW_CREDENTIALS = True
CORS_ALLOW_HEADERS = [
    "accept",
    "authorization",
    "content-type",
    "x-csrftoken",
    "x-requested-with",
    "x-id-token",
    "user-session-id",
    "kdc-stream-id",
    "x-user-timezone",
    "x-user-utc-offset",
    "idempotency-key",
    "last-event-id",
]
CORS_EXPOSE_HEADERS = ["X-Session-ID", "X-User-Type", "Retry-After"]

# --- the three apps -------------------------------------------------------------------------------
# Redis or Valkey: with it, any number of processes are one house; without, there is one process.
REDIS_URL = env.str("REDIS_URL", default="")
REDIS_PREFIX = env.str("REDIS_PREFIX", default="backchannel")
# Who runs turns: the processes that serve (embedded), or workers (`manage.py runturns`). A fleet has workers.
TURNS = env.str("TURNS", default="workers" if REDIS_URL and ON_POSTGRESQL else "embedded")
if TURNS not in ("embedded", "workers"):
    raise ImproperlyConfigured(f"TURNS is {TURNS!r}; it must be embedded or workers")
if TURNS == "workers" and not (REDIS_URL and ON_POSTGRESQL):
    raise ImproperlyConfigured("TURNS=workers needs REDIS_URL and a DATABASE_URL of PostgreSQL")
MEMORY_LAYER = {
    "default": {
        "BACKEND": "relay.layers.memory.MemoryChannelLayer",
        # The hub's channel carries the events of every session of the process; past this they are read
        # from the log, which costs more.
        # A long answer (some 5,000 deltas) stays within its session's log; what is older is in the archive.
        "CONFIG": {"channel_capacity": {"hub.*": 20_000}, "history_bytes": 6 * 1024 * 1024},
    }
}
REDIS_LAYER = {
    "default": {
        "BACKEND": "relay.layers.redis.RedisChannelLayer",
        "CONFIG": {
            "url": REDIS_URL,
            "prefix": REDIS_PREFIX,
            "channel_capacity": {"hub.*": 20_000},
            "history_bytes": 6 * 1024 * 1024,
        },
    }
}
CHANNEL_LAYERS = REDIS_LAYER if REDIS_URL else MEMORY_LAYER

DEFAULT_TENANT = env.str("DEFAULT_TENANT", default="default")
DEFAULT_PROJECT = env.str("DEFAULT_PROJECT", default="default")
LLM: dict[str, object] = {
    "BASE_URL": env.str("LLM_BASE_URL", default=""),
    "API_KEY": env.str("LLM_API_KEY", default=""),
    "MODEL": env.str("LLM_MODEL", default=""),
    "SYSTEM_PROMPT": env.str("LLM_SYSTEM_PROMPT", default=""),
    "PRICE_INPUT_PER_MILLION": env.float("LLM_PRICE_INPUT_PER_MILLION", default=0.0),
    "PRICE_OUTPUT_PER_MILLION": env.float("LLM_PRICE_OUTPUT_PER_MILLION", default=0.0),
    "TIMEOUT_SECONDS": env.float("LLM_TIMEOUT_SECONDS", default=120.0),
    "HISTORY_TOKENS": env.int("LLM_HISTORY_TOKENS", default=6000),
    "ATTACHMENT_TOKENS": env.int("LLM_ATTACHMENT_TOKENS", default=6000),
    "IMAGES": env.bool("LLM_IMAGES", default=True),
    "TOOLS": env.list("LLM_TOOLS", default=["comm.bundles.llm.toolkit"]),
    "SUGGESTIONS": env.bool("LLM_SUGGESTIONS", default=True),
}
# With a model server named, it answers; without, its SDK is not even imported.
HAS_LLM = bool(LLM["BASE_URL"] and LLM["MODEL"])
COMM = {
    "DEFAULT_TENANT": DEFAULT_TENANT,
    "DEFAULT_PROJECT": DEFAULT_PROJECT,
    "TENANT_WALL": TENANT_WALL,
    "DEFAULT_BUNDLE": env.str("DEFAULT_BUNDLE", default="llm" if HAS_LLM else "demo"),
    "BUNDLES": {
        "demo": "comm.bundles.demo.DemoBundle",
        **({"llm": "comm.bundles.llm.bundle.LlmBundle"} if HAS_LLM else {}),
        **env.dict("BUNDLES", default={}),
    },
    "EVENT_FILTERS": env.list("EVENT_FILTERS", default=[]),
    "FIREWALL": env.json("FIREWALL", default={}),
    # With Redis the layer itself hands every envelope to the recorder process.
    "SINKS": env.list("SINKS", default=[] if REDIS_URL else ["recorder.sink.RecorderSink"]),
    "SERVICES": env.list("SERVICES", default=["recorder.desk.ReplayDesk", "comm.events.EventManagerService"]),
    # Of the services a worker needs only what ends with the process: replays are shown by who serves.
    "WORKER_SERVICES": ["comm.events.EventManagerService"],
    "TURN_QUEUE": "project.tasks.JobQueue" if TURNS == "workers" else "",
    "ARCHIVE": env.str("ARCHIVE", default="recorder.archive.RecordedArchive"),
    "TURN_CONCURRENCY": env.int("TURN_CONCURRENCY", default=64),
    "WORKER_START_SECONDS": env.float("WORKER_START_SECONDS", default=30.0),
    "DRAIN_GRACE_SECONDS": env.float("DRAIN_GRACE_SECONDS", default=10.0),
}
TOKEN_JWKS_URL = env.str("TOKEN_JWKS_URL", default="")
TOKEN_KEY = env.str("TOKEN_KEY", multiline=True, default="")
RELAY = {
    # With the issuer's keys, tokens are known; the login of this site is known in any case.
    "AUTHENTICATORS": [
        *(["relay.tokens.BearerToken"] if TOKEN_JWKS_URL or TOKEN_KEY else []),
        "relay.credentials.DjangoLogin",
    ],
    "TOKEN_JWKS_URL": TOKEN_JWKS_URL,
    "TOKEN_KEY": TOKEN_KEY,
    "TOKEN_ALGORITHMS": env.list("TOKEN_ALGORITHMS", default=[]),
    "TOKEN_ISSUER": env.str("TOKEN_ISSUER", default=""),
    "TOKEN_AUDIENCES": env.list("TOKEN_AUDIENCES", default=[]),
    "ID_TOKEN_AUDIENCES": env.list("ID_TOKEN_AUDIENCES", default=[]),
    "TOKEN_LEEWAY_SECONDS": env.float("TOKEN_LEEWAY_SECONDS", default=30.0),
    "TOKEN_ROLES_CLAIM": env.str("TOKEN_ROLES_CLAIM", default="roles"),
    "TOKEN_ROLES": env.dict("TOKEN_ROLES", default={"admin": "privileged", "paid": "paid"}),
    "TOKEN_USER_PREFIX": env.str("TOKEN_USER_PREFIX", default=""),
    "REJECT_ANONYMOUS_SSE": env.bool("CHAT_SSE_REJECT_ANONYMOUS", default=False),
    "REJECT_ANONYMOUS_WS": env.bool("CHAT_WS_REJECT_ANONYMOUS", default=False),
    "KEEPALIVE_SECONDS": env.float("KEEPALIVE_SECONDS", default=15.0),
    "DRAIN_WINDOW_SECONDS": env.float("DRAIN_WINDOW_SECONDS", default=2.0),
    "AUTH_TOKEN_COOKIE_NAME": env.str("AUTH_TOKEN_COOKIE_NAME", default="__Secure-LATC"),
    "ID_TOKEN_COOKIE_NAME": env.str("ID_TOKEN_COOKIE_NAME", default="__Secure-LITC"),
    "ID_TOKEN_HEADER_NAME": env.str("ID_TOKEN_HEADER_NAME", default="X-ID-Token"),
    "SOCKET_AUTH_SECONDS": env.float("SOCKET_AUTH_SECONDS", default=10.0),
    "NOT_READING_SECONDS": env.float("NOT_READING_SECONDS", default=15.0),
    "CHATBOT_BUNDLE": env.str("CHATBOT_BUNDLE", default=""),
    "WEBCHAT_TRUST_IDS": env.bool("WEBCHAT_TRUST_IDS", default=DEBUG),
    "WEBCHAT_ROLES": env.dict(
        "WEBCHAT_ROLES", default={"platform_admin": "privileged", "customer_admin": "paid"}
    ),
    "WEBCHAT_TIMEOUT_SECONDS": env.float("WEBCHAT_TIMEOUT_SECONDS", default=180.0),
    "MESSAGE_RATE": env.str("MESSAGE_RATE", default="120/minute"),
    "OPERATION_RATE": env.str("OPERATION_RATE", default="600/minute"),
    "RATE_STORE_URL": REDIS_URL,
    "RATE_STORE_PREFIX": f"{REDIS_PREFIX}:rates",
    "OPERATION_SECONDS": env.float("OPERATION_SECONDS", default=60.0),
}
SANDBOX = {
    "RUNNER": env.str("SANDBOX_RUNNER", default="subprocess"),
    "TIMEOUT_SECONDS": env.float("SANDBOX_TIMEOUT_SECONDS", default=60.0),
    "CPU_SECONDS": env.int("SANDBOX_CPU_SECONDS", default=60),
    "MEMORY_BYTES": env.int("SANDBOX_MEMORY_MIB", default=2048) * 1024 * 1024,
}
# Where one step of the demo bundle runs: empty in this process, else the name of a sandbox runner.
DEMO_SANDBOX = env.str("DEMO_SANDBOX", default="")
RECORDER: dict[str, object] = {
    "REDIS_URL": REDIS_URL,
    "REDIS_PREFIX": REDIS_PREFIX,
    "FLUSH_SECONDS": env.float("RECORDER_FLUSH_SECONDS", default=0.25),
    "CLOSE_SECONDS": env.float("RECORDER_CLOSE_SECONDS", default=10.0),
    "BATCH_ROWS": env.int("RECORDER_BATCH_ROWS", default=500),
    "CLAIM_SECONDS": env.float("RECORDER_CLAIM_SECONDS", default=5.0),
    "TRANSACTION_IDLE_SECONDS": env.float("RECORDER_TRANSACTION_IDLE_SECONDS", default=5.0),
    "ARCHIVE_WAIT_SECONDS": env.float("RECORDER_ARCHIVE_WAIT_SECONDS", default=10.0),
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "relay.ingress.errors.exception_handler",
    "UNAUTHENTICATED_USER": None,
}

# --- logs -----------------------------------------------------------------------------------------
LOG_LEVEL = env.str("LOG_LEVEL", default="INFO")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        name: {"handlers": ["console"], "level": LOG_LEVEL, "propagate": False}
        for name in ("comm", "relay", "recorder", "project")
    },
}
