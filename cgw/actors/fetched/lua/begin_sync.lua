-- begin_sync: raise the fence, so that no earlier holder of the lock can write any more.
--
-- KEYS     [1] the fence
-- ARGV     [1] the fencing token, [2] the fence's time to live in ms
-- Returns  the server's time in ms; or 'fenced' if a greater fencing token has been here
--
-- The fence expires: if the lock's counter is lost and begins again, syncing must not be refused for ever.

if tonumber(ARGV[1]) < (tonumber(redis.call('GET', KEYS[1]) or '0') or 0) then return 'fenced' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local time = redis.call('TIME')
return time[1] * 1000 + math.floor(time[2] / 1000)
