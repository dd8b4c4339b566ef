"""The Lua of what has no log: channels that any process may receive from, and who has which stream open.

Texts for `scripts.Scripts`, which puts its head before them and its values into them.
"""

_LIVING = """
local function drop_expired(list, now)
  local first = call('LINDEX', list, 0)
  while first and unpk('>I8', first) <= now do
    call('LPOP', list)
    first = call('LINDEX', list, 0)
  end
end
"""

PUT = (
    _LIVING
    + """
local list, now = P .. 'chan:' .. ARGV[1], ms()
drop_expired(list, now)
if call('LLEN', list) >= tonumber(ARGV[2]) then return 0 end
call('RPUSH', list, pack('>I8', now + ARGV[3]) .. ARGV[4])
call('PEXPIRE', list, ARGV[3])
call('PUBLISH', P .. 'bell:' .. ARGV[1], '')
return 1
"""
)

TAKE = (
    _LIVING
    + """
local list, now = P .. 'chan:' .. ARGV[1], ms()
drop_expired(list, now)
return call('LPOP', list, ARGV[2]) or {{}}
"""
)

GIVE_BACK = """
local list, now = P .. 'chan:' .. ARGV[1], ms()
for i = #ARGV, 3, -1 do call('LPUSH', list, ARGV[i]) end
call('PEXPIRE', list, ARGV[2])
call('PUBLISH', P .. 'bell:' .. ARGV[1], '')
"""

TELL = """
local until_ms = ms() + ARGV[2]
for i = 3, #ARGV, 2 do
  local key = P .. 'stream:' .. ARGV[i]
  if ARGV[i + 1] == '' then
    call('HDEL', key, ARGV[1])
  else
    call('HSET', key, ARGV[1], pack('>I8', until_ms) .. ARGV[i + 1])
    call('PEXPIRE', key, ARGV[2])
  end
end
"""

FIND = """
local now, found = ms(), {{}}
local told = call('HGETALL', P .. 'stream:' .. ARGV[1])
for i = 2, #told, 2 do
  if unpk('>I8', told[i]) > now then found[#found + 1] = cut(told[i], 9) end
end
return found
"""
