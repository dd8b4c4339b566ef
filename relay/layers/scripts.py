"""The Lua that runs inside Redis: each script is one atomic step, and all of them share one head.

Keys, under the layer's prefix: `tail:<group>` (epoch, seq, bytes ever kept, bytes before the oldest entry, last
renewal; 8 bytes each), `log:<group>` (a stream whose ids are the positions; `m` message, `t` ms when it was kept,
`c` bytes kept before it), `clock` (which epochs were given), `sender:<id>` (the last batch of a sender, and what
became of it and of the one before it), `chan:<name>` (a channel that any process may receive from), `stream:<id>`
(who has it open), `back:<group>` (up to where a loss was told of: epoch, seq). Published are `to:<group>` and
`bell:<name>`. A log without its tail is garbage: the next one begins without it.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from comm.recorder_stream import ENTRY_BYTES as RECORDED_ENTRY_BYTES
from comm.recorder_stream import MOST_GAPS, OTHER_GROUPS, WENT_BACK, StreamKeys

from . import channel_scripts

ENTRY_BYTES = 64
"""What an entry of a log takes beside its message (measured: 40 to 80)."""

SENDER_SECONDS = 120
"""How long the store remembers what became of a sender's last batch: longer than any call waits."""

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,60}", re.ASCII)

_HEAD = """
local P, COUNT, BYTES, AGE = '{prefix}:', {count}, {log_bytes}, {age_ms}
local ENTRY = {entry_bytes}
local call, pack, unpk, cut = redis.call, struct.pack, struct.unpack, string.sub

local function ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function clock(now)
  local c = call('HMGET', P .. 'clock', 'seen', 'high', 'gone', 'moved')
  return tonumber(c[1] or now), tonumber(c[2] or 0), tonumber(c[3] or 0), tonumber(c[4] or 0)
end

-- Every later epoch lies after this one.
local function past(epoch, now)
  local _, _, gone, _ = clock(now)
  if epoch > gone then call('HSET', P .. 'clock', 'gone', epoch) end
end

-- Begin the log of a group that has none. Its epoch is the time, and later than that of any log that is gone.
-- Where the clock was set back, all that was given before counts as gone; and while epochs are ahead of the
-- clock, so does, now and then, what was given meanwhile.
local function open(group, now)
  local seen, high, gone, moved = clock(now)
  if now < seen or (gone >= now and now - moved > AGE / 2) then
    gone = math.max(gone, high)
    moved = now
  end
  local epoch = math.max(now, gone + 1)
  call('HSET', P .. 'clock', 'seen', now, 'high', math.max(high, epoch), 'gone', gone, 'moved', moved)
  call('SET', '{born}', now, 'NX')
  call('DEL', P .. 'log:' .. group)
  call('SET', P .. 'tail:' .. group, pack('>I8I8I8I8I8', epoch, 0, 0, 0, 0), 'PX', AGE)
  return epoch
end

local function value(entry, name)
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- Drop the oldest entries until `keep` says yes; the newest stays when `newest` is true.
local function trim(log, keep, newest)
  local from = '-'
  local last
  while true do
    local part = call('XRANGE', log, from, '+', 'COUNT', 16)
    for _, entry in ipairs(part) do
      if keep(entry) then
        call('XTRIM', log, 'MINID', entry[1])
        return entry
      end
      last = entry
    end
    if #part < 16 then break end
    from = '(' .. last[1]
  end
  if last and newest then
    call('XTRIM', log, 'MINID', last[1])
    return last
  elseif last then
    call('XTRIM', log, 'MAXLEN', 0)
  end
end

local function trim_old(log, now)
  local oldest = call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if oldest and tonumber(value(oldest, 't')) < now - AGE then
    oldest = trim(log, function(entry) return tonumber(value(entry, 't')) >= now - AGE end, false)
  end
  return oldest
end
"""

_NOTING = """
-- What is not recorded goes into one note for each group: first, last, how many, and why where it says so.
local function note_gap(group, first, last, lost, why)
  local noted = call('HGET', '{gaps}', group)
  if not noted and call('HLEN', '{gaps}') >= {most_gaps} then
    group, first, last = '{other_groups}', '-', '-'
    noted = call('HGET', '{gaps}', group)
  end
  if noted then
    local since, missed, told = string.match(noted, '^(%S+) %S+ (%d+)(.*)$')
    first, lost = since, lost + missed
    if told ~= '' then why = told end
  end
  call('HSET', '{gaps}', group, first .. ' ' .. last .. ' ' .. lost .. why)
end
"""

_APPEND = (
    _NOTING
    + """
local REC, HELD, CAP = '{recorder}', '{held}', {recorder_bytes}
local NOWHERE = pack('>I8I8', 0, 0)
local key, number, now = P .. 'sender:' .. ARGV[1], tonumber(ARGV[2]), ms()
local done = call('GET', key)
local before = ''
if done then
  local last, size = unpk('>I8I4', done)
  if last == number then return cut(done, 13, 12 + size) end
  if last == number + 1 then return cut(done, 13 + size) end
  if last > number then return redis.error_reply('STALE a later batch of this sender was taken') end
  if last == number - 1 then
    before = cut(done, 13, 12 + size)
  elseif ARGV[4] == '1' then
    return 'WAIT'
  end
elseif ARGV[4] == '1' then
  return 'WAIT'
end
if now > tonumber(ARGV[3]) then return 'LATE ' .. now end

local held
local added = 0
local places = {{}}
for i = 5, #ARGV, 2 do
  local kind, group, message = cut(ARGV[i], 1, 1), cut(ARGV[i], 2), ARGV[i + 1]
  local place, text = NOWHERE, ''
  if kind == 'r' or kind == 'h' then
    local tail, log = P .. 'tail:' .. group, P .. 'log:' .. group
    local known = call('GET', tail)
    local epoch, seq, bytes, floor, renewed
    if known then
      epoch, seq, bytes, floor, renewed = unpk('>I8I8I8I8I8', known)
    else
      epoch, seq, bytes, floor, renewed = open(group, now), 0, 0, 0, 0
    end
    seq = seq + 1
    text = epoch .. '-' .. seq
    if not call('XADD', log, 'NOMKSTREAM', 'MAXLEN', COUNT, text, 'm', message, 't', now, 'c', bytes) then
      call('XADD', log, text, 'm', message, 't', now, 'c', bytes)
      floor, renewed = bytes, 0
    end
    bytes = bytes + ENTRY + #message
    if bytes - floor > BYTES then
      floor = tonumber(value(call('XRANGE', log, '-', '+', 'COUNT', 1)[1], 'c'))
      if bytes - floor > BYTES then
        local enough = bytes - BYTES * 7 / 8
        floor = tonumber(value(trim(log, function(e) return tonumber(value(e, 'c')) >= enough end, true), 'c'))
      end
    end
    if now - renewed > AGE / 4 then
      trim_old(log, now)
      call('PEXPIRE', log, AGE * 2)
      renewed = now
    end
    local state = pack('>I8I8I8I8I8', epoch, seq, bytes, floor, renewed)
    call('SET', tail, state, 'PX', AGE)
    place = cut(state, 1, 16)
  end
  if kind == 'r' or kind == 'p' then
    held = held or tonumber(call('GET', HELD) or 0)
    local size = {recorded_entry_bytes} + #group + #text + #message
    if held + added + size > CAP then
      local at = text ~= '' and text or '-'
      note_gap(group, at, at, 1, '')
    else
      call('XADD', REC, '*', 'p', text, 'g', group, 'm', message)
      added = added + size
    end
  end
  call('PUBLISH', P .. 'to:' .. group, place .. message)
  places[#places + 1] = place
end
if added > 0 then call('INCRBY', HELD, added) end
local result = table.concat(places)
call('SET', key, pack('>I8I4', number, #result) .. result .. before, 'PX', {sender_ms})
return result
"""
)

_READ = """
local group, epoch, seq = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local limit, most = tonumber(ARGV[4]), tonumber(ARGV[5])
local now, log = ms(), P .. 'log:' .. group
local known = call('GET', P .. 'tail:' .. group)
if not known then return {{pack('>I8I8', open(group, now), 0), 0, {{}}, 0}} end
local mine, newest = unpk('>I8I8', known)
local oldest = trim_old(log, now)
local start = newest
if oldest then start = tonumber(string.match(oldest[1], '-(%d+)$')) - 1 end
local from = start
if epoch == mine and seq >= start and seq <= newest then from = seq end
local found, size = {{}}, 0
while #found < limit and size < most do
  local part = call('XRANGE', log, '(' .. mine .. '-' .. from, '+', 'COUNT', math.min(64, limit - #found))
  if #part == 0 then break end
  for _, entry in ipairs(part) do
    local message = value(entry, 'm')
    found[#found + 1] = message
    size = size + #message
    from = from + 1
    if size >= most then break end
  end
end
return {{cut(known, 1, 16), start, found, from - #found}}
"""

_TAILS = """
local keys, places = {{}}, {{}}
for i, group in ipairs(ARGV) do keys[i] = P .. 'tail:' .. group end
local now = ms()
local found = call('MGET', unpack(keys))
for i, group in ipairs(ARGV) do
  -- A group that is named twice is begun once.
  local known = found[i] or call('GET', keys[i])
  places[i] = known and cut(known, 1, 16) or pack('>I8I8', open(group, now), 0)
end
return table.concat(places)
"""

_RENEW = """
local now = ms()
for _, group in ipairs(ARGV) do
  call('PEXPIRE', P .. 'tail:' .. group, AGE)
  if call('PEXPIRE', P .. 'log:' .. group, AGE * 2) == 1 then trim_old(P .. 'log:' .. group, now) end
end
"""

_CONFIRM = (
    _NOTING
    + """
-- The recorder may have taken what is lost here: it compares the note with its rows. Processes that know more
-- and more of one loss tell of it one after the other.
local function note_lost(group, mine, newest, epoch, seq, told_upto)
  local since, lost = mine > 0 and mine or epoch, mine == epoch and seq - newest or seq
  local first = since .. '-' .. (newest + 1)
  if told_upto then first, lost = epoch .. '-' .. (told_upto + 1), seq - told_upto end
  note_gap(group, first, epoch .. '-' .. seq, lost, ' {went_back}')
  call('SET', P .. 'back:' .. group, pack('>I8I8', epoch, seq), 'PX', AGE)
end

local now, begun = ms(), 0
-- A Redis that is full takes nothing, and is read from all the same.
redis.pcall('SET', '{born}', now, 'NX')
for i = 1, #ARGV, 4 do
  local group, epoch, seq, how = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3]
  local known = call('GET', P .. 'tail:' .. group)
  local mine, newest = 0, 0
  if known then mine, newest = unpk('>I8I8', known) end
  if mine ~= epoch or newest < seq then
    local _, _, gone, _ = clock(now)
    local told = call('GET', P .. 'back:' .. group)
    local of, upto = 0, nil
    if told then of, upto = unpk('>I8I8', told) end
    if of ~= epoch then upto = nil end
    local kept = known or string.find(how, 'j')
    -- A log that nobody is a member of expires; one that is younger than that did not.
    local lost = mine <= epoch and (kept or (epoch > gone and now - epoch < AGE))
    if string.find(how, 'r') and (lost and (seq > 0 or known) or upto) and seq > (upto or -1) then
      note_lost(group, mine, newest, epoch, seq, upto)
    end
    if lost then
      past(math.max(mine, epoch), now)
      if kept then open(group, now) end
      begun = begun + 1
    elseif mine < epoch and epoch >= now then
      past(epoch, now)
    end
  end
end
return {{now, begun}}
"""
)

_FORGET = """
local known = call('GET', P .. 'tail:' .. ARGV[1])
if known then past(unpk('>I8', known), ms()) end
call('DEL', P .. 'tail:' .. ARGV[1], P .. 'log:' .. ARGV[1])
"""

_FORGET_ALL = """
local now = ms()
local _, high, _, _ = clock(now)
past(high, now)
"""

_BODIES = {
    "append": _APPEND,
    "read": _READ,
    "tails": _TAILS,
    "renew": _RENEW,
    "confirm": _CONFIRM,
    "forget": _FORGET,
    "forget_all": _FORGET_ALL,
    "put": channel_scripts.PUT,
    "take": channel_scripts.TAKE,
    "give_back": channel_scripts.GIVE_BACK,
    "tell": channel_scripts.TELL,
    "find": channel_scripts.FIND,
}


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text, and the digest that Redis knows it by."""

    name: str
    text: bytes
    digest: bytes


@dataclass(frozen=True)
class Scripts:
    """The scripts of one layer, with its prefix and bounds written into them.

    count, log_bytes, age_ms: bounds of a log. recorder_bytes: the bound of the recorder stream.
    """

    prefix: str
    count: int
    log_bytes: int
    age_ms: int
    recorder_bytes: int

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ValueError(f"the prefix {self.prefix!r} is not made of letters, digits and _.:-")

    @cached_property
    def all(self) -> dict[str, Script]:
        """Every script by its name."""
        keys = StreamKeys.of(self.prefix)
        values = {
            "prefix": self.prefix,
            "count": self.count,
            "log_bytes": self.log_bytes,
            "age_ms": self.age_ms,
            "entry_bytes": ENTRY_BYTES,
            "recorder_bytes": self.recorder_bytes,
            "recorder": keys.stream,
            "held": keys.held,
            "gaps": keys.gaps,
            "born": keys.born,
            "most_gaps": MOST_GAPS,
            "went_back": WENT_BACK,
            "other_groups": OTHER_GROUPS,
            "recorded_entry_bytes": RECORDED_ENTRY_BYTES,
            "sender_ms": SENDER_SECONDS * 1000,
        }
        return {name: _script(name, (_HEAD + body).format(**values)) for name, body in _BODIES.items()}


def _script(name: str, text: str) -> Script:
    encoded = text.encode()
    return Script(name, encoded, hashlib.sha1(encoded, usedforsecurity=False).hexdigest().encode())
