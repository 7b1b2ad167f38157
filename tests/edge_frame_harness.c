/* edge_frame.h by commands, for tests/test_mcu.py: one a line on stdin, one answer a line on stdout.

       begin BOOT SEED KEY|-        a new link                              -> ok
       seq STREAM SEQ               the next sample's                       -> ok
       hello T | sample STREAM T DTYPE LABEL HEX NDIM SIZE... | label STREAM SEQ T LABEL SOURCE CONFIDENCE
       control STREAM SEQ T CODE | time T HOST BOARD | stats T G D S R C | log T HEX | ack STREAM SEQ T
       end STREAM T | next STREAM T | before STREAM TOTAL T
                                                                            -> the line's bytes as hex, - if refused
       receive HEX                  -> each frame: type cflags stream boot seq t_us dtype shape label payload; and answers
       noise SEED N                 N random bytes, one in twelve a zero    -> frames taken
       fill N                       N samples into the FIFO, nothing taken  -> generated dropped overrun
       take | noted                 -> what waits in the FIFO | what the host's frames changed */
#define EF_STREAMS 4
#define EF_RX_BYTES 8192
#define EDGE_FRAME_AUTH
#define EDGE_FRAME_IMPLEMENTATION
#include "edge_frame.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char STREAMS[] =
    "{\"0\":{\"channels\":[\"x\",\"y\",\"z\"],\"dtype\":\"int16\",\"label_names\":[\"rest\",\"run\"],\"name\":\"wave\","
    "\"rate_hz\":100.0,\"scale\":0.5,\"shape\":[2,3],\"unit\":\"g\"}}";

static ef_link link_;
static uint8_t fifo[20000], bytes[20000];
static char text[70000];

static size_t from_hex(const char *hex, uint8_t *to) {
    size_t size = strlen(hex) / 2, i;
    unsigned byte;
    for (i = 0; i < size && sscanf(hex + 2 * i, "%2x", &byte) == 1; i++) to[i] = (uint8_t)byte;
    return i;
}

static void print_hex(const uint8_t *from, size_t size) {
    size_t i;
    for (i = 0; i < size; i++) printf("%02x", from[i]);
}

static void begin(unsigned boot, uint32_t seed, const char *key) {
    static const ef_link nothing;
    uint8_t secret[64];
    link_ = nothing;
    ef_begin(&link_, "board", "1.0", STREAMS, (uint16_t)boot, fifo, sizeof fifo);
    link_.seed = seed;
    if (key[0] != '-' && !ef_use_key(&link_, secret, from_hex(key, secret))) exit(3);
}

static void show(const ef_frame *frame) {
    int i;
    printf("%d %d %d %d %" PRIu32 " %" PRIu64 " %d ", frame->type, frame->cflags, frame->stream, frame->boot, frame->seq,
           frame->t_us, frame->dtype);
    for (i = 0; i < frame->ndim; i++) printf("%s%d", i ? "x" : "", frame->shape[i]);
    printf("%s %" PRId32 " ", frame->ndim ? "" : "-", frame->label);
    print_hex(frame->payload, frame->size);
    printf("; ");
}

static void receive(const char *hex) {
    size_t size = from_hex(hex, bytes), i;
    ef_frame frame;
    for (i = 0; i < size; i++)
        if (ef_receive(&link_, bytes[i], 4242, &frame) != EF_NOTHING) show(&frame);
    size = ef_take(&link_, bytes, sizeof bytes);
    printf("answers ");
    print_hex(bytes, size);
}

static void noise(uint32_t state, long n) {
    long taken = 0;
    for (; n > 0; n--) {
        state = state * 1664525u + 1013904223u;
        taken += ef_receive(&link_, (state >> 16) % 12 ? (uint8_t)(state >> 24) : 0, 1, 0) != EF_NOTHING;
    }
    printf("%ld", taken);
}

static void answer(int sent) {
    size_t size = ef_take(&link_, bytes, 7), more; /* in pieces, as a transmitter takes them */
    while ((more = ef_take(&link_, bytes + size, 7)) != 0) size += more;
    if (sent)
        print_hex(bytes, size);
    else
        printf("-");
}

static int obey(const char *verb, char *rest) {
    unsigned a, b, c;
    uint32_t seq, n[5];
    uint64_t t, u, v;
    int32_t label;
    float confidence;
    int used;
    uint16_t shape[4];
    if (!strcmp(verb, "begin") && sscanf(rest, "%u %" SCNu32 " %s", &a, &seq, text) == 3) {
        begin(a, seq, text);
        printf("ok");
    } else if (!strcmp(verb, "seq") && sscanf(rest, "%u %" SCNu32, &a, &seq) == 2) {
        link_.next_seq[a] = seq;
        printf("ok");
    } else if (!strcmp(verb, "hello") && sscanf(rest, "%" SCNu64, &t) == 1) {
        answer(ef_hello(&link_, t));
    } else if (!strcmp(verb, "sample") &&
               sscanf(rest, "%u %" SCNu64 " %u %" SCNd32 " %s %u%n", &a, &t, &b, &label, text, &c, &used) == 6) {
        unsigned i;
        for (i = 0; i < c && i < 4; i++) shape[i] = (uint16_t)strtol(rest + used, &rest, 10), used = 0;
        from_hex(text, bytes);
        answer(ef_sample(&link_, (uint16_t)a, t, (uint8_t)b, (uint8_t)c, shape, bytes, label));
    } else if (!strcmp(verb, "label") && sscanf(rest, "%u %" SCNu32 " %" SCNu64 " %" SCNd32 " %u %f", &a, &seq, &t,
                                                &label, &b, &confidence) == 6) {
        answer(ef_label(&link_, (uint16_t)a, seq, t, label, (uint8_t)b, confidence));
    } else if (!strcmp(verb, "control") && sscanf(rest, "%u %" SCNu32 " %" SCNu64 " %u", &a, &seq, &t, &b) == 4) {
        answer(ef_control(&link_, (uint16_t)a, seq, t, (uint8_t)b));
    } else if (!strcmp(verb, "end") && sscanf(rest, "%u %" SCNu64, &a, &t) == 2) {
        answer(ef_end(&link_, (uint16_t)a, t));
    } else if (!strcmp(verb, "next") && sscanf(rest, "%u %" SCNu64, &a, &t) == 2) {
        answer(ef_next(&link_, (uint16_t)a, t));
    } else if (!strcmp(verb, "before") && sscanf(rest, "%u %" SCNu32 " %" SCNu64, &a, &seq, &t) == 3) {
        answer(ef_before(&link_, (uint16_t)a, seq, t));
    } else if (!strcmp(verb, "time") && sscanf(rest, "%" SCNu64 " %" SCNu64 " %" SCNu64, &t, &u, &v) == 3) {
        answer(ef_time(&link_, t, u, v));
    } else if (!strcmp(verb, "stats") && sscanf(rest, "%" SCNu64 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32,
                                                &t, n, n + 1, n + 2, n + 3, n + 4) == 6) {
        link_.generated = n[0];
        link_.dropped = n[1];
        link_.sent = n[2];
        link_.received = n[3];
        link_.crc = n[4];
        answer(ef_stats(&link_, t));
    } else if (!strcmp(verb, "log") && sscanf(rest, "%" SCNu64 " %s", &t, text) == 2) {
        bytes[from_hex(text, bytes)] = 0;
        answer(ef_log(&link_, t, (const char *)bytes));
    } else if (!strcmp(verb, "ack") && sscanf(rest, "%u %" SCNu32 " %" SCNu64, &a, &seq, &t) == 3) {
        answer(ef_ack(&link_, (uint16_t)a, seq, t));
    } else if (!strcmp(verb, "receive")) {
        receive(sscanf(rest, "%s", text) == 1 ? text : "");
    } else if (!strcmp(verb, "noise") && sscanf(rest, "%" SCNu32 " %u", &seq, &a) == 2) {
        noise(seq, (long)a);
    } else if (!strcmp(verb, "fill") && sscanf(rest, "%u", &a) == 1) {
        shape[0] = 100;
        for (; a > 0; a--) ef_sample(&link_, 0, 1, EF_U8, 1, shape, bytes, EF_NO_LABEL);
        printf("%" PRIu32 " %" PRIu32 " %d", link_.generated, link_.dropped, link_.overrun[0]);
    } else if (!strcmp(verb, "take")) {
        answer(1);
    } else if (!strcmp(verb, "noted")) {
        printf("asked %d seed %" PRIu32 " safe %" PRIu32 " received %" PRIu32 " crc %" PRIu32, link_.asked, link_.seed,
               link_.safe[0], link_.received, link_.crc);
    } else {
        return 0;
    }
    return 1;
}

int main(void) {
    static char command[70000];
    while (fgets(command, sizeof command, stdin)) {
        char verb[16];
        int used = 0;
        if (sscanf(command, "%15s%n", verb, &used) != 1 || !obey(verb, command + used)) {
            fprintf(stderr, "cannot obey: %s", command);
            return 2;
        }
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
