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

-- Return the answer of an earlier call with this id, or nil if none was admitted.
local function recall()
  local record = call('GET', KEYS[1])
  if not record then return nil end
  if record == 'void' then error('reservation ' .. ARGV[1] .. ' was given up', 0) end
  local numbers = {unpack_numbers('<' .. string.rep('d', #record / 8), record)}
  numbers[#numbers] = nil -- struct.unpack adds the position after the last one
  return numbers
end

local count = (#ARGV - 3) / 4
local now = now_ms()
local answer, is_admitted = {1, now, 0}, true

-- By limit: its numbers, what it holds with this claim (a bucket's debt, the number of leases), and for buckets what else
-- load_bucket returned. What differs by kind is decided in place: a script's functions and tables are made again for each
-- call, and those that would tell the kinds apart took a seventh of its time.
local limits, periods, costs, amounts, empty_ats, is_ahead = {}, {}, {}, {}, {}, {}

for i = 1, count do
  local at, key = 4 * i, KEYS[i + 1]
  local limit, period, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local wait = 0
  if ARGV[at] == 'bucket' then
    local debt, old_limit, old_period, empty_at, ahead = load_bucket(key, now)
    debt = debt and convert_debt(debt, old_limit, old_period, limit, period) or 0
    empty_ats[i], is_ahead[i] = empty_at, ahead
    cost = cost * period -- in debt
    local full = limit * period
    if debt + cost > full then wait = cost > full and -1 or ceil((debt + cost - full) / limit) end
    amounts[i] = debt + cost
  else
    local after_now = '(' .. text(now)
    local held = read('ZCOUNT', key, after_now, '+inf') -- leases that ended may still be in the set
    if cost > limit then
      wait = -1
    elseif held + cost > limit then
      -- Most leases are freed long before they end, so retrying within a second is worthwhile.
      local first = call('ZRANGEBYSCORE', key, after_now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
      wait = max(1, min(first[2] - now, 1000))
    end
    amounts[i] = held + cost
  end
  limits[i], periods[i], costs[i], answer[at + 3] = limit, period, cost, wait
  if wait ~= 0 then is_admitted = false end
end

if not is_admitted then
  -- A retry of an admitted call may find its own claim in the way: look for its record before refusing.
  local earlier = recall()
  if earlier then return earlier end
  answer[1] = 0
  for i = 1, count do
    amounts[i] = amounts[i] - costs[i]
    if is_ahead[i] then
      -- The clock stepped back to before the last write. Write the bucket as of now: it would not refill before the
      -- clock has caught up, which may take days. The debt stays, so this is not a consumption.
      save_bucket(KEYS[i + 1], now, amounts[i], limits[i], periods[i], empty_ats[i])
    end
  end
end

for i = 1, count do -- how the limits stand
  local at = 4 * i
  if ARGV[at] == 'bucket' then
    answer[at], answer[at + 1], answer[at + 2] = measure_bucket(amounts[i], limits[i], periods[i])
  else
    answer[at], answer[at + 1], answer[at + 2] = max(0, limits[i] - amounts[i]), 0, 0
  end
end

if not is_admitted then
  if ARGV[3] ~= '' and answer[7] > 0 then answer[3] = cross(KEYS[#KEYS], ARGV[3], limits[1], limits[1], periods[1]) end
  return answer
end

-- Write the record first, and only if there is none: if there is one, this is a retry (or was given up), and the script
-- can still end without having written anything. It also spares the usual case a GET.
local record = pack('<' .. string.rep('d', #answer), unpack(answer))
if not call('SET', KEYS[1], record, 'PX', ARGV[2], 'NX') then return recall() end
for i = 1, count do
  local key, amount = KEYS[i + 1], amounts[i]
  if ARGV[4 * i] == 'bucket' then
    -- Nothing but this claim is owed: time had paid off everything before, which settle must know (see settle.lua).
    save_bucket(key, now, amount, limits[i], periods[i], amount == costs[i] and now or empty_ats[i])
  else
    -- If no other lease is held, clear those that ended. Otherwise leave that to the heartbeats (renew.lua).
    if amount == costs[i] then call('DEL', key) end
    call('ZADD', key, text(now + periods[i]), ARGV[1])
    call('PEXPIRE', key, text(periods[i] + SLACK_MS))
  end
end
return answer
