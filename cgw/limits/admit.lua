-- admit: claim from n limits at once, or change nothing.
--
-- KEYS     [1] the reservation's record; [2..n+1] one key per limit, all different; [n+2] where the notices of the first
--          limit are noted, if ARGV[3] names thresholds; all in one slot (hash tag)
-- ARGV     [1] reservation id; [2] ms to keep the record; [3] the percentages of the first limit that somebody is told
--          of, as "90 95 100", or ""; then 4 per limit:
--          kind (bucket | window | lease), limit, period in ms (lease: its length), cost (lease: 1)
-- Returns  {admitted 1|0, now in ms, threshold that was reached just now or 0, then 4 per limit: remaining, ms until
--          unused again, ms until more is available (0: all is; of leases nobody knows, so both are 0), ms to wait
--          before trying again (0: this limit did not refuse; -1: waiting is pointless)}
-- Guarantees
--   All or nothing: a refusal consumes nothing of any limit. No limit is exceeded, whoever else calls.
--   An admitted reservation id gets the same answer again, without consuming, while its record lives.
--   The order of the limits does not matter, but for the notices. Integers are exact (see state.lua).
--   Each threshold is returned once per interval: here when the first limit refuses (it is used up), and by settle
--   when what was charged reached it.

local record = redis.call('GET', KEYS[1])
if record then
  local answer = {}
  for number in string.gmatch(record, '%-?%d+') do answer[#answer + 1] = tonumber(number) end
  return answer
end

local now = now_ms()

-- Per kind: `check` looks and sets plan.wait, `measure` says how it stands after the decision, `claim` writes.
local check, measure, claim = {}, {}, {}

function check.bucket(plan)
  local limit, period, cost = plan.limit, plan.period, plan.cost
  local bucket = load_bucket(plan.key, now) or {debt = 0, limit = limit, period = period, empty_at = 0}
  convert_bucket(bucket, limit, period)
  local excess = bucket.debt + (cost - limit) * period
  if excess > 0 then plan.wait = cost > limit and -1 or math.ceil(excess / limit) end
  plan.bucket = bucket
end

function measure.bucket(plan, admitted)
  local bucket, period = plan.bucket, plan.period
  return measure_bucket(admitted and bucket.debt + plan.cost * period or bucket.debt, plan.limit, period)
end

function claim.bucket(plan)
  local bucket = plan.bucket
  if bucket.debt == 0 then bucket.empty_at = now end
  bucket.debt = bucket.debt + plan.cost * plan.period
  save_bucket(plan.key, bucket, now)
end

function check.window(plan)
  plan.used, plan.id = load_window(plan.key, now, plan.period)
  plan.reset = (plan.id + 1) * plan.period - now
  if plan.used + plan.cost > plan.limit then plan.wait = plan.cost > plan.limit and -1 or plan.reset end
end

function measure.window(plan, admitted)
  local used = admitted and plan.used + plan.cost or plan.used
  if used == 0 then return plan.limit, 0, 0 end
  return math.max(0, plan.limit - used), plan.reset, plan.reset
end

function claim.window(plan)
  save_window(plan.key, plan.used + plan.cost, plan.id, now, plan.period)
end

function check.lease(plan)
  plan.held = read('ZCOUNT', plan.key, format('(%.0f', now), '+inf')
  if plan.cost > plan.limit then
    plan.wait = -1
  elseif plan.held + plan.cost > plan.limit then
    -- Leases are mostly freed long before they end: come back within a second.
    local first = redis.call('ZRANGEBYSCORE', plan.key, format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    plan.wait = math.max(1, math.min(first[2] - now, 1000))
  end
end

function measure.lease(plan, admitted)
  local held = admitted and plan.held + plan.cost or plan.held
  return math.max(0, plan.limit - held), 0, 0
end

function claim.lease(plan)
  local key, period = plan.key, plan.period
  -- What is left of the dead goes when nobody else is there; otherwise the heartbeats of the living do it.
  if plan.held == 0 then redis.call('DEL', key) end
  redis.call('ZADD', key, format('%.0f', now + period), ARGV[1])
  redis.call('PEXPIRE', key, format('%.0f', period + SLACK_MS))
end

local plans, admitted = {}, true
for i = 1, (#ARGV - 3) / 4 do
  local at = 4 * i
  local plan = {
    kind = ARGV[at], key = KEYS[i + 1], wait = 0,
    limit = tonumber(ARGV[at + 1]), period = tonumber(ARGV[at + 2]), cost = tonumber(ARGV[at + 3]),
  }
  check[plan.kind](plan)
  if plan.wait ~= 0 then admitted = false end
  plans[i] = plan
end

local answer = {admitted and 1 or 0, now, 0}
local text = format('1 %.0f 0', now)
for i, plan in ipairs(plans) do
  local remaining, reset, more = measure[plan.kind](plan, admitted)
  local at = 4 * i
  answer[at], answer[at + 1], answer[at + 2], answer[at + 3] = remaining, reset, more, plan.wait
  if admitted then
    text = format('%s %.0f %.0f %.0f %.0f', text, remaining, reset, more, plan.wait)
    claim[plan.kind](plan)
  elseif plan.bucket and plan.bucket.is_ahead then
    -- The clock stepped back behind the last write: count from here, or nothing would refill until it is there again.
    save_bucket(plan.key, plan.bucket, now)
  end
end
if admitted then
  redis.call('SET', KEYS[1], text, 'PX', ARGV[2])
elseif ARGV[3] ~= '' and plans[1].wait > 0 then
  local first = plans[1]
  answer[3] = cross(KEYS[#KEYS], ARGV[3], first.limit, first.limit, first.period)
end
return answer
