"""A bundle that says what its message's payload lists: the transports' contract knows exactly what goes out."""

from comm.bundles import Bundle, TurnContext


class Script(Bundle):
    """`payload` is a list of lines: {"text", "times"?, "size"?, "marker"?}, {"event", "to"?} or {"project"}."""

    async def run(self, turn: TurnContext) -> None:
        comm = turn.communicator
        for line in turn.message.payload or []:
            if "text" in line:
                for number in range(line.get("times", 1)):
                    text = f"{line['text']}{number} ".ljust(line.get("size", 0), ".")
                    await comm.delta(line.get("marker", "answer"), text)
            elif "event" in line:
                await comm.service_event(type=line["event"], data={}, target_sid=line.get("to"))
            else:
                await comm.project_event(type=line["project"])
