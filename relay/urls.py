"""The URLs of relay that Django serves; the streams are mounted in the project's asgi.py."""

from django.urls import path, re_path

from .ingress import chatbot, downloads, integrations, views

CONVERSATIONS = "api/cb/conversations/<str:tenant>/<str:project>"
CONVERSATION = f"{CONVERSATIONS}/<str:conversation_id>"
OPERATION = "api/integrations/bundles/<str:tenant>/<str:project>/<str:bundle_id>/operations/<str:operation>"

urlpatterns = [
    path("", views.chat_page, name="chat"),
    path("health", views.HealthView.as_view(), name="health"),
    path("profile", views.ProfileView.as_view(), name="profile"),
    path("sse/chat", views.ChatView.as_view(), name="sse-chat"),
    path("sse/ticket", views.TicketView.as_view(), name="sse-ticket"),
    path("sse/conv_status.get", views.ConversationStateView.as_view(), name="conversation-state"),
    path(CONVERSATIONS, views.ConversationsView.as_view(), name="conversations"),
    path(f"{CONVERSATION}/fetch", views.ConversationView.as_view(), name="conversation"),
    path(OPERATION, integrations.OperationView.as_view(), name="operation"),
    path(
        f"{CONVERSATION}/attachments/<uuid:attachment_id>",
        downloads.DownloadView.as_view(),
        name="attachment",
    ),
    path("api/chatbot/stop/<str:workflow_id>", chatbot.StopView.as_view(), name="chatbot-stop"),
    re_path(r"^(?:sse|api)/", views.UnknownView.as_view()),
]
