-- settle: put what was really used in place of what was reserved, once.
--
-- KEYS     as given to admit: [1] the reservation's record; [2..n+1] one key per limit
-- ARGV     [1] reservation id; then 5 per limit: kind (bucket | window | lease), limit, period in ms, reserved, used
-- Returns  1 when it was settled now; 0 when it had been settled before, was never admitted, or its record expired
-- Guarantees
--   Once: a second call changes nothing. A lease is freed in any case.
--   used < reserved gives the difference back, exactly, as far as there is debt. What time has given back already
--   is not given twice: nothing comes back of a bucket that was empty since, or of a window that has ended. So in
--   any span of time, what was admitted less what was given back is at most the limit and its refill.
--   used > reserved is charged, up to a debt of two full buckets. Limits that were changed meanwhile keep their
--   new numbers.

local now = now_ms()
local record = redis.call('GETDEL', KEYS[1])
local admitted_at = record and tonumber(string.match(record, '^1 (%d+)'))

local settle = {}

function settle.bucket(key, limit, period, difference)
  local bucket = load_bucket(key, now)
  if not bucket then
    if difference < 0 then return end
    bucket = {debt = 0, limit = limit, period = period, empty_at = now}
  end
  if difference < 0 and admitted_at < bucket.empty_at then return end
  local most = 2 * bucket.limit * bucket.period
  -- Compare in tokens first: the product of an absurd usage could leave the exact range.
  local change = difference > 2 * bucket.limit and most or difference * bucket.period
  bucket.debt = math.max(0, math.min(bucket.debt + change, most))
  save_bucket(key, bucket, now)
end

function settle.window(key, limit, period, difference)
  local used, id = load_window(key, now, period)
  if difference < 0 and math.floor(admitted_at / period) < id then return end
  save_window(key, math.max(0, used + difference), id, now, period)
end

for i = 1, #KEYS - 1 do
  local at = 2 + (i - 1) * 5
  local kind, difference = ARGV[at], tonumber(ARGV[at + 4]) - tonumber(ARGV[at + 3])
  if kind == 'lease' then
    redis.call('ZREM', KEYS[i + 1], ARGV[1])
  elseif record and difference ~= 0 then
    settle[kind](KEYS[i + 1], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), difference)
  end
end
return record and 1 or 0
