-- renew: keep the leases of reservations that are still under way.
--
-- KEYS     [1] the key of a limit of kind lease
-- ARGV     [1] the length of a lease in ms; [2] keep | take; [3..n+2] reservation ids
-- Returns  the ids that have no lease here: it ended while this server was away, or the server came back empty
-- Guarantees
--   keep: each lease that is there ends one length from now. What was freed stays free, however late this call comes.
--   take: those that are not there are taken again, also beyond the limit: what is under way is under way, and must
--   be counted. Not to be called for a reservation once its settlement was sent.
--   Nothing else is changed.

local key, length = KEYS[1], tonumber(ARGV[1])
local now = now_ms()
local ends, lost, pairs_to_add = text(now + length), {}, {}
local scores = read('ZMSCORE', key, unpack(ARGV, 3))
for i = 3, #ARGV do
  if scores[i - 2] or ARGV[2] == 'take' then
    pairs_to_add[#pairs_to_add + 1] = ends
    pairs_to_add[#pairs_to_add + 1] = ARGV[i]
  else
    lost[#lost + 1] = ARGV[i]
  end
end
if #pairs_to_add > 0 then call('ZADD', key, unpack(pairs_to_add)) end
call('ZREMRANGEBYSCORE', key, '-inf', text(now))
call('PEXPIRE', key, text(length + SLACK_MS))
return lost
