-- admit: claim from n limits at once, or change nothing.
--
-- KEYS     [1] the reservation's record; [2..n+1] one key per limit, all different; [n+2] the key of the first limit's
--          alerts, if ARGV[3] has thresholds; all in one slot (hash tag)
-- ARGV     [1] reservation id; [2] ms to keep the record; [3] the percentages of the first limit that alerts are sent
--          for, as "90 95 100", or ""; then 4 per limit:
--          kind (bucket | lease), limit, period in ms (lease: its length), cost (lease: 1)
-- Returns  {admitted 1|0, now in ms, threshold that was reached just now or 0, then 4 per limit: remaining, ms until
--          unused again, ms until more is available (0: all is), ms to wait before retrying (0: this limit did not
--          refuse; -1: waiting is pointless)}. When leases end is unknown, so for them both times are 0.
-- Guarantees
--   All or nothing: a refusal consumes nothing of any limit. No limit is exceeded, however many callers there are.
--   A retry with an admitted reservation id gets the first call's answer, without consuming, as long as its record
--   lives. A reservation that settle has given up before admit arrived is an error, and consumes nothing.
--   The order of the limits does not matter, except that alerts are about the first. Integers are exact (state.lua).
--   Each threshold is returned once per interval: by admit when the first limit refuses (it is used up), by settle
--   when the charges reach it.
-- Records  of a reservation: this answer, as a string of little-endian doubles | "void" (given up, see settle.lua)

local record_key, count = KEYS[1], (#ARGV - 3) / 4
local now = now_ms()
local answer, is_admitted = {1, now, 0}, true

-- By limit: what it holds (a bucket's debt, the number of leases held), and for buckets what load_bucket returned.
local amounts, empty_ats, is_ahead = {}, {}, {}

-- By kind: `check` reads, fills `amounts` and returns the ms to wait; `measure` returns how the limit stands at an
-- amount; `claim` writes, once `amounts` includes the cost.
local check, measure, claim = {}, {}, {}

function check.bucket(i, key, limit, period, cost)
  local debt, old_limit, old_period, empty_at, ahead = load_bucket(key, now)
  debt = debt and convert_debt(debt, old_limit, old_period, limit, period) or 0
  amounts[i], empty_ats[i], is_ahead[i] = debt, empty_at, ahead
  local excess = debt + (cost - limit) * period -- what the claim would exceed a full bucket by
  if excess <= 0 then return 0 end
  return cost > limit and -1 or ceil(excess / limit)
end

measure.bucket = measure_bucket

function claim.bucket(i, key, limit, period, cost)
  local debt = amounts[i]
  -- Nothing but this claim is owed: time had paid off everything before, which settle must know (see settle.lua).
  save_bucket(key, now, debt, limit, period, debt == cost * period and now or empty_ats[i])
end

function check.lease(i, key, limit, _, cost)
  local after_now = '(' .. text(now)
  local held = read('ZCOUNT', key, after_now, '+inf') -- leases that ended may still be in the set
  amounts[i] = held
  if held + cost <= limit then return 0 end
  if cost > limit then return -1 end
  -- Most leases are freed long before they end, so retrying within a second is worthwhile.
  local first = call('ZRANGEBYSCORE', key, after_now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return max(1, min(first[2] - now, 1000))
end

function measure.lease(held, limit)
  return max(0, limit - held), 0, 0
end

function claim.lease(i, key, _, period, cost)
  -- If no other lease is held, clear those that ended. Otherwise leave that to the heartbeats (renew.lua).
  if amounts[i] == cost then call('DEL', key) end
  call('ZADD', key, text(now + period), ARGV[1])
  call('PEXPIRE', key, text(period + SLACK_MS))
end

local kinds, limits, periods, costs, waits = {}, {}, {}, {}, {}
for i = 1, count do
  local at = 4 * i
  local kind, limit, period, cost = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  kinds[i], limits[i], periods[i], costs[i] = kind, limit, period, cost
  waits[i] = check[kind](i, KEYS[i + 1], limit, period, cost)
  if waits[i] ~= 0 then is_admitted = false end
end

-- Add how all limits stand at `amounts`.
local function fill_answer()
  for i = 1, count do
    local at = 4 * i
    answer[at], answer[at + 1], answer[at + 2] = measure[kinds[i]](amounts[i], limits[i], periods[i])
    answer[at + 3] = waits[i]
  end
end

-- Return the answer of an earlier call with this id, or nil if none was admitted.
local function recall()
  local record = call('GET', record_key)
  if not record then return nil end
  if record == 'void' then error('reservation ' .. ARGV[1] .. ' was given up', 0) end
  local numbers = {unpack_numbers('<' .. string.rep('d', #record / 8), record)}
  numbers[#numbers] = nil -- struct.unpack adds the position after the last one
  return numbers
end

if not is_admitted then
  -- A retry of an admitted call may find its own claim in the way: look for its record before refusing.
  local earlier = recall()
  if earlier then return earlier end
  answer[1] = 0
  for i = 1, count do
    if is_ahead[i] then
      -- The clock stepped back to before the last write. Write the bucket as of now: it would not refill before the
      -- clock has caught up, which may take days. The debt stays, so this is not a consumption.
      save_bucket(KEYS[i + 1], now, amounts[i], limits[i], periods[i], empty_ats[i])
    end
  end
  fill_answer()
  if ARGV[3] ~= '' and waits[1] > 0 then answer[3] = cross(KEYS[#KEYS], ARGV[3], limits[1], limits[1], periods[1]) end
  return answer
end

for i = 1, count do
  amounts[i] = amounts[i] + (kinds[i] == 'bucket' and costs[i] * periods[i] or costs[i])
end
fill_answer()
-- Write the record first, and only if there is none: if there is one, this is a retry (or was given up), and the script
-- can still end without having written anything. It also spares the usual case a GET.
local record = pack('<' .. string.rep('d', #answer), unpack(answer))
if not call('SET', record_key, record, 'PX', ARGV[2], 'NX') then return recall() end
for i = 1, count do claim[kinds[i]](i, KEYS[i + 1], limits[i], periods[i], costs[i]) end
return answer
