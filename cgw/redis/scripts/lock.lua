-- lock: take, keep or free a lock whose holders have ever larger tokens.
--
-- KEYS     [1] the holder: a hash of owner and token, which expires; [2] the last token (one hash tag)
-- ARGV     [1] take | seize | keep | free; [2] the caller's id; [3] ms until the lock expires unless it is kept
-- Returns  {token, ms}: the caller's token, 0 if the lock is not the caller's; ms until the lock expires, 0 if it is free
-- Guarantees
--   take gives a lock that is free; seize also one that another owner holds. Both are safe to repeat: an owner that has
--   it already gets the same token again.
--   keep and free do nothing to a lock of another owner.

local verb, owner, expiry = ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call
local held = call('HMGET', KEYS[1], 'owner', 'token')

if held[1] == owner then
  if verb == 'free' then
    call('DEL', KEYS[1])
    return {0, 0}
  end
  call('PEXPIRE', KEYS[1], expiry)
  return {tonumber(held[2]), expiry}
end
local is_given = verb == 'seize' or verb == 'take' and not held[1]
if not is_given then return {0, held[1] and call('PTTL', KEYS[1]) or 0} end

-- At least the time, so that tokens grow even when the server has lost the last one (a failover, FLUSHALL): a smaller
-- token than those in the fences would be refused everywhere.
local time = call('TIME')
local token = math.max((tonumber(call('GET', KEYS[2])) or 0) + 1, time[1] * 1000 + math.floor(time[2] / 1000))
call('SET', KEYS[2], string.format('%.0f', token)) -- Lua's own conversion keeps 14 digits only
call('HSET', KEYS[1], 'owner', owner, 'token', string.format('%.0f', token))
call('PEXPIRE', KEYS[1], expiry)
return {token, expiry}
