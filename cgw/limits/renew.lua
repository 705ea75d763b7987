-- renew: keep the leases of reservations that are still under way.
--
-- KEYS     [1] the key of a limit of kind lease
-- ARGV     [1] the length of a lease in ms; [2..n+1] reservation ids
-- Returns  how many of them had lost their lease
-- Guarantees
--   Each lease ends one length from now. One that was lost (it ended while this server was away, or the server came
--   back empty) is taken again, also beyond the limit: what is under way is under way, and must be counted.
--   Nothing else is changed. Not to be called for a reservation once its settlement was sent.

local key, length = KEYS[1], tonumber(ARGV[1])
local now = now_ms()
local ends, lost = text(now + length), 0
read('ZCARD', key)
for i = 2, #ARGV do
  lost = lost + call('ZADD', key, ends, ARGV[i])
end
call('ZREMRANGEBYSCORE', key, '-inf', text(now))
call('PEXPIRE', key, text(length + SLACK_MS))
return lost
