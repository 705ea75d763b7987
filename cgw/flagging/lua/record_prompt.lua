-- Keep a flagged prompt for some time, and at most so many of them.
-- KEYS: the index (a sorted set of names by their end, in ms), the prompt.
-- ARGV: the name in the index, the prompt, its time in ms, how many are kept, the prefix of prompts' keys.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = now + tonumber(ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], ends, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local surplus = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4])
if surplus > 0 then
    -- All keys have one hash tag, so they are on this server.
    for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, surplus - 1)) do
        redis.call('DEL', ARGV[5] .. name)
    end
    redis.call('ZREMRANGEBYRANK', KEYS[1], 0, surplus - 1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
