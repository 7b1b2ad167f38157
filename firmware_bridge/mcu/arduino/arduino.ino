/* A sketch around edge_frame.h: a sensor of three axes on the analogue inputs, 100 samples a second over USB serial.
   Copy edge_frame.h beside this file. What is not in it: anything that waits. */
#include <EEPROM.h>

#define EDGE_FRAME_IMPLEMENTATION
#include "edge_frame.h"

const char STREAMS[] =
    "{\"0\":{\"channels\":[\"x\",\"y\",\"z\"],\"dtype\":\"int16\",\"name\":\"axes\",\"rate_hz\":100.0,\"shape\":[3]}}";
const uint16_t SHAPE[1] = {3};
const unsigned long PERIOD_US = 10000;

// EEPROM is good for 100,000 writes: at 100 samples a second and one write for 65,536 of them, for two years. The number
// in it is never behind what was made. So up to 65,536 samples that were never made are counted as lost when the power
// goes; a real loss is never kept quiet. What a new EEPROM holds does not matter: only differences count. (ESP32,
// RP2040: EEPROM.begin(8) in setup, EEPROM.commit() behind each put.)
const uint32_t RESERVE = 65536;
struct Lasting {
  uint32_t boot;
  uint32_t total;
} lasting;
uint32_t before;  // samples of all boots before this one

ef_link board;
uint8_t fifo[512];
unsigned long due_us;
unsigned long last_us;
uint32_t turns;  // micros() begins again every 71 minutes; t_us must not

uint64_t now_us() {
  unsigned long now = micros();
  if (now < last_us) turns++;
  last_us = now;
  return (uint64_t)turns << 32 | now;
}

void say_where() {
  ef_next(&board, 0, now_us());
  ef_before(&board, 0, before, now_us());
}

void setup() {
  Serial.begin(115200);
  EEPROM.get(0, lasting);
  lasting.boot++;
  EEPROM.put(0, lasting);
  before = lasting.total;
  ef_begin(&board, "arduino", "1.0", STREAMS, (uint16_t)lasting.boot, fifo, sizeof fifo);
  due_us = micros();
}

void loop() {
  while (Serial.available() > 0) ef_receive(&board, (uint8_t)Serial.read(), now_us(), 0);
  if (board.asked && ef_hello(&board, now_us())) {
    say_where();
    say_where();  // each may be lost
  }

  if ((long)(micros() - due_us) >= 0) {
    int16_t values[3] = {(int16_t)analogRead(A0), (int16_t)analogRead(A1), (int16_t)analogRead(A2)};
    if (before + board.next_seq[0] == lasting.total) {
      lasting.total += RESERVE;
      EEPROM.put(0, lasting);
    }
    ef_sample(&board, 0, now_us(), EF_I16, 1, SHAPE, values, EF_NO_LABEL);
    if (board.next_seq[0] % 128 == 0) say_where();
    due_us += PERIOD_US;
  }

  uint8_t piece[32];
  int room = Serial.availableForWrite();
  size_t size = ef_take(&board, piece, room < (int)sizeof piece ? (size_t)room : sizeof piece);
  Serial.write(piece, size);
}
