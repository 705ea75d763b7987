-- peek: read how n limits stand. Changes nothing, so a read-only replica may answer too.
--
-- KEYS     [1..n] one key per limit, all in one slot (hash tag)
-- ARGV     3 per limit: kind (bucket | lease), limit, period in ms
-- Returns  {now in ms, then 3 per limit: remaining, ms until unused again, ms until more is available (0: all is)}
--          When leases end is unknown, so for them both times are 0.

local now = now_ms()
local look = {}

function look.bucket(key, limit, period)
  local debt, old_limit, old_period = load_bucket(key, now)
  if not debt then return limit, 0, 0 end
  return measure_bucket(convert_debt(debt, old_limit, old_period, limit, period), limit, period)
end

function look.lease(key, limit)
  return max(0, limit - read('ZCOUNT', key, '(' .. text(now), '+inf')), 0, 0
end

local answer = {now}
for i = 1, #KEYS do
  local at = 1 + (i - 1) * 3
  local remaining, reset, more = look[ARGV[at]](KEYS[i], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]))
  answer[#answer + 1] = remaining
  answer[#answer + 1] = reset
  answer[#answer + 1] = more
end
return answer
