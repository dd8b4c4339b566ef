# One image for every role: web (its own command), worker, recorder and the migration before them (see compose.yaml).
#
# It needs SECRET_KEY, ALLOWED_HOSTS, DATABASE_URL (PostgreSQL) and REDIS_URL; .env.example lists everything else. Without
# DATABASE_URL and REDIS_URL it serves alone, on a SQLite file in /data.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    DEBUG=false \
    DATA_DIR=/data

WORKDIR /app

# In front of the code, so that a change of code installs nothing anew.
COPY requirements.txt ./
RUN pip install -r requirements.txt

COPY . .
RUN SECRET_KEY=for-this-step-alone python manage.py collectstatic --noinput --verbosity 0 \
    && python -m compileall -q . \
    && mkdir -p /data && useradd --system --uid 10001 --home-dir /nonexistent --no-create-home backchannel \
    && chown backchannel /data

# The program is root's: what runs as this user cannot change it.
USER backchannel

# Attachments; web processes and workers on several hosts share it.
VOLUME /data
EXPOSE 8000

# Streams are told and turns may finish: give it longer than DRAIN_GRACE_SECONDS (10 by default) before SIGKILL.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=8s --start-period=60s --retries=3 \
    CMD ["python", "-m", "project.health", "--port", "8000"]
CMD ["python", "-m", "uvicorn", "project.asgi:application", "--host", "0.0.0.0", "--port", "8000", \
     "--loop", "uvloop", "--http", "httptools", "--timeout-graceful-shutdown", "15", \
     "--ws-max-size", "67108864", "--ws-per-message-deflate", "false"]
