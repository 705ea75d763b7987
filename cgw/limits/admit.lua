-- admit: claim from n limits at once, or change nothing.
--
-- KEYS     [1] the reservation's record; [2..n+1] one key per limit, all different; all in one slot (hash tag)
-- ARGV     [1] reservation id; [2] ms to keep the record; then 4 per limit:
--          kind (bucket | window | lease), limit, period in ms (lease: its length), cost (lease: 1)
-- Returns  {admitted 1|0, now in ms, then 4 per limit: remaining, ms until unused again,
--          ms until more is available (0: all is), ms to wait before trying again (0: this limit did not refuse;
--          -1: waiting is pointless)}
-- Guarantees
--   All or nothing: a refusal consumes nothing of any limit. No limit is exceeded, whoever else calls.
--   An admitted reservation id gets the same answer again, without consuming, while its record lives.
--   The order of the limits does not matter. Integers are exact (see state.lua).

local record = redis.call('GET', KEYS[1])
if record then
  local answer = {}
  for number in string.gmatch(record, '%-?%d+') do answer[#answer + 1] = tonumber(number) end
  return answer
end

local now = now_ms()
local admitted = true
local plans, waits = {}, {}

local check = {}

function check.bucket(key, limit, period, cost)
  local bucket = load_bucket(key, now) or {debt = 0, limit = limit, period = period, empty_at = 0}
  convert_bucket(bucket, limit, period)
  local claimed = bucket.debt + cost * period
  local excess = claimed - limit * period
  local wait = 0
  if excess > 0 then wait = cost > limit and -1 or math.ceil(excess / limit) end
  local function measure(is_claimed)
    return measure_bucket(is_claimed and claimed or bucket.debt, limit, period)
  end
  local function claim()
    if bucket.debt == 0 then bucket.empty_at = now end
    bucket.debt = claimed
    save_bucket(key, bucket, now)
  end
  local function leave()
    -- The clock stepped back behind the last write: count from here, or nothing would refill until it is there again.
    if bucket.is_ahead then save_bucket(key, bucket, now) end
  end
  return wait, measure, claim, leave
end

function check.window(key, limit, period, cost)
  local used, id = load_window(key, now, period)
  local reset = (id + 1) * period - now
  local wait = 0
  if used + cost > limit then wait = cost > limit and -1 or reset end
  local function measure(is_claimed)
    local total = is_claimed and used + cost or used
    if total == 0 then return limit, 0, 0 end
    return math.max(0, limit - total), reset, reset
  end
  local function claim() save_window(key, used + cost, id, now, period) end
  return wait, measure, claim
end

function check.lease(key, limit, period, cost)
  local held = redis.call('ZCOUNT', key, '(' .. integers(now), '+inf')
  local first_end = 0
  if held > 0 then
    local first = redis.call('ZRANGEBYSCORE', key, '(' .. integers(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    first_end = tonumber(first[2]) - now
  end
  local wait = 0
  -- Leases are mostly freed long before they end: come back within a second.
  if held + cost > limit then wait = cost > limit and -1 or math.max(1, math.min(first_end, 1000)) end
  local function measure(is_claimed)
    local total = is_claimed and held + cost or held
    if total == 0 then return limit, 0, 0 end
    return math.max(0, limit - total), period, held > 0 and first_end or period
  end
  local function claim()
    redis.call('ZREMRANGEBYSCORE', key, '-inf', integers(now))
    redis.call('ZADD', key, integers(now + period), ARGV[1])
    if redis.call('PTTL', key) < period + SLACK_MS then redis.call('PEXPIRE', key, integers(period + SLACK_MS)) end
  end
  return wait, measure, claim
end

for i = 1, #KEYS - 1 do
  local at = 3 + (i - 1) * 4
  local wait, measure, claim, leave =
    check[ARGV[at]](KEYS[i + 1], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]))
  plans[i] = {measure = measure, claim = claim, leave = leave}
  waits[i] = wait
  if wait ~= 0 then admitted = false end
end

local answer = {admitted and 1 or 0, now}
for i, plan in ipairs(plans) do
  local remaining, reset, more = plan.measure(admitted)
  answer[#answer + 1] = remaining
  answer[#answer + 1] = reset
  answer[#answer + 1] = more
  answer[#answer + 1] = waits[i]
end
for _, plan in ipairs(plans) do
  if admitted then plan.claim() elseif plan.leave then plan.leave() end
end
if admitted then redis.call('SET', KEYS[1], integers(unpack(answer)), 'PX', ARGV[2]) end
return answer
