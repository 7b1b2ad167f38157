/* A sketch around edge_frame.h: a sensor of three axes on the analogue inputs, 100 samples a second over USB serial.
   Copy edge_frame.h beside this file. What is not in it: anything that waits. */
#define EDGE_FRAME_IMPLEMENTATION
#include "edge_frame.h"

const char STREAMS[] =
    "{\"0\":{\"channels\":[\"x\",\"y\",\"z\"],\"dtype\":\"int16\",\"name\":\"axes\",\"rate_hz\":100.0,\"shape\":[3]}}";
const uint16_t SHAPE[1] = {3};
const unsigned long PERIOD_US = 10000;

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

void setup() {
  Serial.begin(115200);
  randomSeed(analogRead(A5));
  // The boot id must differ from the last one. A board with EEPROM counts there; with a key it has to.
  ef_begin(&board, "arduino", "1.0", STREAMS, (uint16_t)random(1, 65536), fifo, sizeof fifo);
  due_us = micros();
}

void loop() {
  while (Serial.available() > 0) ef_receive(&board, (uint8_t)Serial.read(), now_us(), 0);
  if (board.asked) ef_hello(&board, now_us());

  if ((long)(micros() - due_us) >= 0) {
    int16_t values[3] = {(int16_t)analogRead(A0), (int16_t)analogRead(A1), (int16_t)analogRead(A2)};
    ef_sample(&board, 0, now_us(), EF_I16, 1, SHAPE, values, EF_NO_LABEL);
    due_us += PERIOD_US;
  }

  uint8_t piece[32];
  int room = Serial.availableForWrite();
  size_t size = ef_take(&board, piece, room < (int)sizeof piece ? (size_t)room : sizeof piece);
  Serial.write(piece, size);
}
