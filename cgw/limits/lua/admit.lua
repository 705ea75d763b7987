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
--   An admitted reservation id gets the same answer again, without consuming, while its record lives (a string of
--   doubles, the answer). One that was given up by settle before it came here is an error, and consumes nothing.
--   The order of the limits does not matter, but for the notices. Integers are exact (see state.lua).
--   Each threshold is returned once per interval: here when the first limit refuses (it is used up), and by settle
--   when what was charged reached it.

local record_key, count = KEYS[1], (#ARGV - 3) / 4
local now = now_ms()
local answer, is_admitted = {1, now, 0}, true

-- What each limit holds (a bucket's debt, what is used of a window, leases held), and what goes with it.
local amounts, empty_ats, ids, is_ahead = {}, {}, {}, {}

-- Per kind: `check` looks, and returns the ms to wait; `measure` says how it stands; `claim` writes, when `amounts`
-- holds the claim already.
local check, measure, claim = {}, {}, {}

function check.bucket(i, key, limit, period, cost)
  local debt, old_limit, old_period, empty_at, ahead = load_bucket(key, now)
  debt = debt and convert_debt(debt, old_limit, old_period, limit, period) or 0
  amounts[i], empty_ats[i], is_ahead[i] = debt, empty_at, ahead
  local excess = debt + (cost - limit) * period
  if excess <= 0 then return 0 end
  return cost > limit and -1 or ceil(excess / limit)
end

measure.bucket = measure_bucket

function claim.bucket(i, key, limit, period, cost)
  local debt = amounts[i]
  save_bucket(key, now, debt, limit, period, debt == cost * period and now or empty_ats[i])
end

function check.window(i, key, limit, period, cost)
  amounts[i], ids[i] = load_window(key, now, period)
  if amounts[i] + cost <= limit then return 0 end
  return cost > limit and -1 or (ids[i] + 1) * period - now
end

function measure.window(used, limit, period, id)
  if used == 0 then return limit, 0, 0 end
  local reset = (id + 1) * period - now
  return max(0, limit - used), reset, reset
end

function claim.window(i, key, _, period)
  save_window(key, amounts[i], ids[i], now, period)
end

function check.lease(i, key, limit, _, cost)
  local after_now = '(' .. text(now)
  local held = read('ZCOUNT', key, after_now, '+inf')
  amounts[i] = held
  if held + cost <= limit then return 0 end
  if cost > limit then return -1 end
  -- Leases are mostly freed long before they end: come back within a second.
  local first = call('ZRANGEBYSCORE', key, after_now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return max(1, min(first[2] - now, 1000))
end

function measure.lease(held, limit)
  return max(0, limit - held), 0, 0
end

function claim.lease(i, key, _, period, cost)
  -- What is left of the dead goes when nobody else is there; otherwise the heartbeats of the living do it.
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

-- How all limits stand by `amounts`.
local function fill_answer()
  for i = 1, count do
    local at = 4 * i
    answer[at], answer[at + 1], answer[at + 2] = measure[kinds[i]](amounts[i], limits[i], periods[i], ids[i])
    answer[at + 3] = waits[i]
  end
end

-- The answer that an earlier call with this id got, if it was admitted.
local function recall()
  local record = call('GET', record_key)
  if not record then return nil end
  if record == 'void' then error('reservation ' .. ARGV[1] .. ' was given up', 0) end
  local numbers = {unpack_numbers('<' .. string.rep('d', #record / 8), record)}
  numbers[#numbers] = nil -- the position after the last one
  return numbers
end

if not is_admitted then
  local earlier = recall()
  if earlier then return earlier end
  answer[1] = 0
  for i = 1, count do
    if is_ahead[i] then
      -- The clock stepped back behind the last write: count from here, or nothing would refill until it is there again.
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
-- The record goes first: if there is one already, this is a repeat, and nothing has been written.
local record = pack('<' .. string.rep('d', #answer), unpack(answer))
if not call('SET', record_key, record, 'PX', ARGV[2], 'NX') then return recall() end
for i = 1, count do claim[kinds[i]](i, KEYS[i + 1], limits[i], periods[i], costs[i]) end
return answer
