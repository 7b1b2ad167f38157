/* A board of 3 axes, as a program: the main loop that a firmware around edge_frame.h has, with a terminal as its UART.

       cc -O2 -o example_board example_board.c
       ./example_board [--samples N] [--rate HZ] [--boot ID] [--axes-only] [--key HEX] [PORT]

   Without PORT it makes a pseudo-terminal and prints the name of its far end, which is the port to connect to. It waits
   to be asked for HELLO, then sends HELLO, N samples (default: no end) at HZ a second (50; 0: as fast as the line takes
   them) and END, and goes on to answer. Each sample is 32 rows of 3 axes and turns between three states, "rest", "walk"
   and "shake"; its label goes with it, of every tenth one later in a frame of its own. --axes-only sends none. --key
   needs -DEDGE_FRAME_AUTH. It ends when the far end hangs up, and prints what it counted, as JSON. */
#define _XOPEN_SOURCE 600
#define EDGE_FRAME_IMPLEMENTATION
#include "edge_frame.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define ROWS 32
#define AXES 3

static const char STREAMS[] =
    "{\"0\":{\"channels\":[\"x\",\"y\",\"z\"],\"dtype\":\"int16\",\"label_names\":[\"rest\",\"walk\",\"shake\"],"
    "\"name\":\"motion\",\"rate_hz\":1600.0,\"scale\":0.001,\"shape\":[32,3],\"unit\":\"g\"}}";

typedef struct {
    long samples, rate_hz, boot;
    int axes_only;
    const char *key, *port;
} options;

/* ------------------------------------------------------------------ what a real board has in its place: clock, sensor */

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)(now.tv_nsec / 1000);
}

static uint32_t noise_state = 1;

static int noise(int width) {
    noise_state = noise_state * 1664525u + 1013904223u;
    return (int)(noise_state >> 16) % (2 * width + 1) - width;
}

/* A triangle between -height and height. */
static int triangle(long at, int period, int height) {
    int place = (int)(at % period);
    return height - 4 * height * (place < period / 2 ? place : period - place) / period;
}

static int32_t state_of(uint32_t seq) { return (int32_t)(seq / 50 % 3); }

static void measure(uint32_t seq, int16_t values[ROWS][AXES]) {
    static const int period[3] = {32, 16, 6}, height[3] = {5, 200, 700};
    int32_t state = state_of(seq);
    int row, axis;
    for (row = 0; row < ROWS; row++)
        for (axis = 0; axis < AXES; axis++)
            values[row][axis] = (int16_t)(triangle((long)seq * ROWS + row + 3 * axis, period[state], height[state]) +
                                          (axis == 2 ? 1000 : 0) + noise(20));
}

/* ------------------------------------------------------------------------------------------------------------ the board */

static uint32_t owed; /* the label of which sample is still to be sent, plus one */

/* 1 if no label is owed any more. */
static int pay_label(ef_link *link) {
    if (owed && ef_label(link, 0, owed - 1, now_us(), state_of(owed - 1), 0, 1.0f)) owed = 0;
    return !owed;
}

static void take_sample(ef_link *link, const options *wanted) {
    static const uint16_t shape[2] = {ROWS, AXES};
    int16_t values[ROWS][AXES];
    uint32_t seq = link->next_seq[0];
    int later = seq % 10 == 9, sent;
    measure(seq, values);
    sent = ef_sample(link, 0, now_us(), EF_I16, 2, shape, values,
                     wanted->axes_only || later ? EF_NO_LABEL : state_of(seq));
    if (sent && later && !wanted->axes_only) owed = seq + 1;
    if (seq % 1000 == 999) ef_hello(link, now_us()); /* who joins late learns the schema, too */
}

/* Give the line what it takes at once. 0: it is gone. */
static int flush(ef_link *link, int line) {
    static uint8_t piece[512];
    static size_t size, done;
    for (;;) {
        ssize_t n;
        if (done == size) {
            size = ef_take(link, piece, sizeof piece);
            done = 0;
            if (!size) return 1;
        }
        n = write(line, piece + done, size - done);
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        done += (size_t)n;
    }
}

/* Hear what came. 0: the line is gone. */
static int hear(ef_link *link, int line) {
    uint8_t piece[256];
    ssize_t n = read(line, piece, sizeof piece), i;
    if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EINTR);
    for (i = 0; i < n; i++) ef_receive(link, piece[i], now_us(), 0);
    return 1;
}

static void run(ef_link *link, int line, int *spare, const options *wanted) {
    uint64_t due = 0, second = 0, period = wanted->rate_hz ? 1000000u / (uint64_t)wanted->rate_hz : 0;
    int running = 0, ended = 0;
    struct pollfd on_line;
    on_line.fd = line;
    for (;;) {
        uint64_t now = now_us();
        int working = running && link->next_seq[0] < (uint32_t)wanted->samples;
        on_line.events = POLLIN;
        if (link->head != link->tail) on_line.events |= POLLOUT;
        poll(&on_line, 1, working ? (now < due ? (int)((due - now) / 1000) : 0) : 100);
        if ((on_line.revents & POLLIN && !hear(link, line)) || !flush(link, line)) return;
        if (on_line.revents & (POLLHUP | POLLERR) && !(on_line.revents & POLLIN)) return;
        now = now_us();
        if (link->asked && ef_hello(link, now) && !running) {
            running = 1;
            due = second = now;
            if (*spare >= 0) close(*spare); /* from here on a hang-up of the far end is seen */
            *spare = -1;
        }
        if (!running) continue;
        if (working && now >= due) {
            /* Without a clock to follow there is no hurry: wait for the line instead of dropping. */
            if (pay_label(link) && (period || link->head == link->tail)) take_sample(link, wanted);
            due += period;
        }
        if (link->next_seq[0] == (uint32_t)wanted->samples && pay_label(link) && !ended) ended = ef_end(link, 0, now);
        if (now >= second) {
            ef_stats(link, now);
            second += 1000000;
        }
    }
}

/* ------------------------------------------------------------------------------------------------- a terminal for a UART */

static int fail(const char *what) {
    fprintf(stderr, "example_board: %s: %s\n", what, strerror(errno));
    return -1;
}

static int make_raw(int line) {
    struct termios how;
    if (tcgetattr(line, &how)) return fail("not a terminal");
    how.c_iflag = how.c_oflag = how.c_lflag = 0;
    how.c_cflag = (how.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8 | CREAD | CLOCAL;
    how.c_cc[VMIN] = 1;
    how.c_cc[VTIME] = 0;
    cfsetospeed(&how, B115200);
    cfsetispeed(&how, B115200);
    return tcsetattr(line, TCSANOW, &how) ? fail("cannot set the terminal") : line;
}

/* The port, or the near end of a new pseudo-terminal; spare holds its far end open until somebody came. */
static int open_line(const char *port, int *spare) {
    int line = port ? open(port, O_RDWR | O_NOCTTY | O_NONBLOCK) : posix_openpt(O_RDWR | O_NOCTTY);
    if (line < 0) return fail(port ? port : "no pseudo-terminal");
    if (port) return make_raw(line);
    if (grantpt(line) || unlockpt(line)) return fail("no pseudo-terminal");
    *spare = open(ptsname(line), O_RDWR | O_NOCTTY);
    if (*spare < 0 || make_raw(*spare) < 0) return fail("no pseudo-terminal");
    fcntl(line, F_SETFL, O_NONBLOCK);
    printf("%s\n", ptsname(line));
    fflush(stdout);
    return line;
}

static int use_key(ef_link *link, const char *hex) {
#ifdef EDGE_FRAME_AUTH
    uint8_t key[64];
    size_t size = strlen(hex) / 2, i;
    unsigned byte;
    for (i = 0; i < size && i < sizeof key && sscanf(hex + 2 * i, "%2x", &byte) == 1; i++) key[i] = (uint8_t)byte;
    return i == size && ef_use_key(link, key, size);
#else
    (void)link;
    (void)hex;
    return 0;
#endif
}

static int parse(int count, char **words, options *wanted) {
    int i;
    for (i = 1; i < count; i++) {
        const char *word = words[i], *value = i + 1 < count ? words[i + 1] : "";
        if (!strcmp(word, "--axes-only"))
            wanted->axes_only = 1;
        else if (!strcmp(word, "--samples"))
            wanted->samples = atol(value), i++;
        else if (!strcmp(word, "--rate"))
            wanted->rate_hz = atol(value), i++;
        else if (!strcmp(word, "--boot"))
            wanted->boot = atol(value), i++;
        else if (!strcmp(word, "--key"))
            wanted->key = value, i++;
        else if (word[0] == '-' || wanted->port)
            return 0;
        else
            wanted->port = word;
    }
    return wanted->samples > 0 && wanted->rate_hz >= 0 && wanted->boot >= 0;
}

int main(int count, char **words) {
    static ef_link link;
    static uint8_t fifo[8192];
    options wanted = {2147483647L, 50, 0, 0, 0, 0};
    int spare = -1, line;
    wanted.boot = (long)(time(0) % 65536); /* another one at every start; with a key, count instead */
    if (!parse(count, words, &wanted)) {
        fprintf(stderr, "example_board [--samples N] [--rate HZ] [--boot ID] [--axes-only] [--key HEX] [PORT]\n");
        return 2;
    }
    ef_begin(&link, "example board", "1.0", STREAMS, (uint16_t)wanted.boot, fifo, sizeof fifo);
    if (wanted.key && !use_key(&link, wanted.key)) {
        fprintf(stderr, "example_board: --key: 16 to 64 bytes in hex, in a program built with -DEDGE_FRAME_AUTH\n");
        return 2;
    }
    line = open_line(wanted.port, &spare);
    if (line < 0) return 1;
    run(&link, line, &spare, &wanted);
    printf("{\"generated\": %lu, \"dropped\": %lu, \"sent\": %lu, \"received\": %lu, \"crc\": %lu, \"safe\": %lu, "
           "\"agreed\": %s}\n",
           (unsigned long)link.generated, (unsigned long)link.dropped, (unsigned long)link.sent,
           (unsigned long)link.received, (unsigned long)link.crc, (unsigned long)link.safe[0],
           link.seed ? "true" : "false");
    close(line);
    return 0;
}
