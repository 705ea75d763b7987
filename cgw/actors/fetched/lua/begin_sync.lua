-- begin_sync: raise the fence, so that no earlier holder of the lock can write any more.
--
-- KEYS     [1] the fence
-- ARGV     [1] the fencing token
-- Returns  the server's time in µs, so that what is written next is later; or 'fenced' if a greater token has been here
--
-- The fence does not expire: a holder may be paused for any time. Syncing is not refused for ever when Redis loses the
-- lock's counter, because a token is at least the time in ms (cgw/redis/scripts/lock.lua).

if tonumber(ARGV[1]) < (tonumber(redis.call('GET', KEYS[1]) or '0') or 0) then return 'fenced' end
redis.call('SET', KEYS[1], ARGV[1])
local time = redis.call('TIME')
return time[1] * 1000000 + time[2]
