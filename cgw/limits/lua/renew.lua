-- renew: keep the leases of reservations whose requests are still under way.
--
-- KEYS     [1] the key of a limit of kind lease
-- ARGV     [1] the length of a lease in ms; [2] keep | take; [3..n+2] reservation ids
-- Returns  the ids that had no lease here: it ended while this server was away, or the server came back empty
-- Guarantees
--   keep: each lease that exists ends one length from now. A lease that was freed stays free, however late this call
--   arrives.
--   take: leases that do not exist are created, also beyond the limit: the requests are under way and must be counted.
--   The caller must not send it for a reservation whose settlement it has sent: nothing would free the lease.
--   Leases that ended are removed. Nothing else changes.

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
-- Add before removing: a lease that ended a moment ago, by a late heartbeat, is kept.
if #pairs_to_add > 0 then call('ZADD', key, unpack(pairs_to_add)) end
call('ZREMRANGEBYSCORE', key, '-inf', text(now))
call('PEXPIRE', key, text(length + SLACK_MS))
return lost
