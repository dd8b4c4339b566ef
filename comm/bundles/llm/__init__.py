"""The llm bundle: answers from any server that speaks the OpenAI chat-completions protocol.

Nothing is imported here, so that a tool, a setting or a check costs no import of the SDK: the bundle is
`comm.bundles.llm.bundle.LlmBundle`, the decorator `comm.bundles.llm.tools.tool`.
"""
