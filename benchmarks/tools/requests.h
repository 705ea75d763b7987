/* The requests of the load generator: its options, and a request of each kind, for HTTP/1.1 or HTTP/2. */
#define ID_FORMAT "bench-id:%010ld:"
#define EVENTS_FORMAT "events=%04ld:"
#define KINDS 8
#define UINT32_RANGE 4294967296.0
#define PERCENT (UINT32_RANGE / 100)

/* A kind of request. `wire` is a head of HTTP/1.1 or a header block of HTTP/2, and the body. */
struct kind {
    long share, fewest, most, body_bytes;
    int is_stream;
    char *wire;
    size_t head_len, length, id_at;
};

static struct {
    const char *path, *headers, *model, *cancel, *mix;
    long port, stream, body_bytes, slots, repeat, keepalive, max_open, ramp_ms, warm_ms, window_ms, drain_ms,
        open_limit_ms, events, cancel_ms, slow, slow_ms, first_id, http2, spread;
    double rate;
} options = {.path = "/v1/chat/completions", .headers = "", .model = "gpt-4o", .stream = 1, .keepalive = 1,
             .max_open = 4096, .warm_ms = 500, .window_ms = 1000, .drain_ms = 2000, .open_limit_ms = 10000, .slow_ms = 1000};

static struct kind kinds[KINDS];
static int kinds_len;

static size_t build_head(char *into, int body_len) {
    return sprintf(into, "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%ld\r\ncontent-type: application/json\r\naccept: */*\r\n"
                   "user-agent: cgw-benchmarks\r\n%scontent-length: %d\r\n\r\n", options.path, options.port, options.headers, body_len);
}

/* Build the header block for HTTP/2 from the head for HTTP/1.1, so that both have the same fields. */
static size_t build_block(char *into, char *head) {
    char *at = put_field(into, ":method", 7, "POST", 4);
    at = put_field(at, ":scheme", 7, "http", 4);
    at = put_field(at, ":path", 5, options.path, strlen(options.path));
    for (char *line = strstr(head, "\r\n") + 2, *end; (end = strstr(line, "\r\n")) != line; line = end + 2) {
        char *colon = strchr(line, ':'), *value = colon + 1 + strspn(colon + 1, " ");
        for (char *c = line; c < colon; c++) *c |= *c >= 'A' && *c <= 'Z' ? 32 : 0;
        int is_host = strncmp(line, "host:", 5) == 0;
        at = put_field(at, is_host ? ":authority" : line, is_host ? 10 : colon - line, value, end - value);
    }
    return at - into;
}

static void build_request(struct kind *kind) {
    long padding = kind->body_bytes > 300 ? kind->body_bytes - 300 : 0;
    char *body = grow(NULL, padding + 1024), *head = grow(NULL, strlen(options.headers) + strlen(options.path) + 512);
    kind->is_stream = options.mix ? kind->most > 0 : options.stream;
    int length = sprintf(body, "{\"model\":\"%s\",\"max_tokens\":1024,\"stream\":%s,\"messages\":[{\"role\":\"user\",\"content\":\"",
                         options.model, kind->is_stream ? "true" : "false");
    size_t id_in_body = length;
    length += sprintf(body + length, ID_FORMAT, 0L);
    if (options.mix) length += sprintf(body + length, EVENTS_FORMAT, 0L);
    for (long i = 0; i < padding; i++) body[length++] = i % 8 == 7 ? ' ' : 'a' + i % 23;
    length += sprintf(body + length, "\"}]}");
    kind->head_len = build_head(head, length);
    kind->wire = grow(NULL, 2 * kind->head_len + 512 + length);
    if (options.http2) kind->head_len = build_block(kind->wire, head);
    else memcpy(kind->wire, head, kind->head_len);
    memcpy(kind->wire + kind->head_len, body, length);
    kind->length = kind->head_len + length;
    kind->id_at = kind->head_len + id_in_body;
    if (options.http2 && (length > FRAME_LIMIT || kind->head_len > FRAME_LIMIT)) {
        fprintf(stderr, "--http2 is for heads and bodies up to %d bytes\n", FRAME_LIMIT);
        exit(2);
    }
    free(body);
    free(head);
}

/* Read --mix, or make one kind of the other options; build the request of each kind. */
static void build_requests(void) {
    kinds[0] = (struct kind){.share = 100, .fewest = options.events, .most = options.events, .body_bytes = options.body_bytes};
    kinds_len = 1;
    if (options.mix) {
        kinds_len = 0;
        for (const char *at = options.mix; at && kinds_len < KINDS; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
            struct kind *k = &kinds[kinds_len++];
            if (sscanf(at, "%ld/%ld/%ld/%ld", &k->share, &k->fewest, &k->most, &k->body_bytes) != 4) {
                fprintf(stderr, "--mix must be share/fewest/most/bytes,...: %s\n", options.mix);
                exit(2);
            }
        }
    }
    for (int i = 0; i < kinds_len; i++) build_request(&kinds[i]);
}

/* Choose the kind of the exchange `index` and its number of events. Multiples of irrational numbers (the golden ratio and
 * the square root of 2) are spread evenly, so that any hundred exchanges in a row have nearly the same mix. */
static const struct kind *choose_kind(uint32_t index, long *events) {
    double place = (uint32_t)(index * 2654435769u) / PERCENT, among = (uint32_t)(index * 1779033703u) / UINT32_RANGE;
    const struct kind *k = kinds;
    for (; k < kinds + kinds_len - 1 && place >= k->share; k++) place -= k->share;
    *events = k->fewest + (long)(among * (k->most - k->fewest + 1));
    return k;
}

/* Copy a request into `into`, which has room for it, with the numbers of its exchange. */
static void write_request(const struct kind *k, char *into, long exchange, long events) {
    memcpy(into, k->wire, k->length);
    char id[64];
    int length = sprintf(id, ID_FORMAT, exchange);
    if (options.mix) length += sprintf(id + length, EVENTS_FORMAT, events);
    memcpy(into + k->id_at, id, length);
}
