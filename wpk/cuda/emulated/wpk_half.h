// Numbers of 16 bits and their conversions, rounding to nearest even; used by kernels and by the runtime's matrix units.
#pragma once

struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

static inline unsigned wpk_float_bits(float x) { return __builtin_bit_cast(unsigned, x); }
static inline float wpk_bits_float(unsigned x) { return __builtin_bit_cast(float, x); }

static inline float wpk_half_to_float(unsigned short half) {
  unsigned sign = (unsigned)(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return wpk_bits_float(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // the exponent is moved by a multiplication, which takes subnormals along
  return wpk_bits_float(sign | wpk_float_bits(wpk_bits_float(rest << 13) * 0x1p112f));
}

static inline unsigned short wpk_float_to_half(float x) {
  unsigned bits = wpk_float_bits(x), sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return (unsigned short)(sign | 0x7fff);
  if (bits >= 0x477ff000) return (unsigned short)(sign | 0x7c00);  // rounds to 65520 or more
  if (bits < 0x38800000) {  // subnormal: an addition puts the last place where half has it
    float shifted = wpk_bits_float(bits) + 0.5f;
    return (unsigned short)(sign | (wpk_float_bits(shifted) - 0x3f000000u));
  }
  return (unsigned short)(sign | (bits - 0x38000000u + 0xfff + (bits >> 13 & 1)) >> 13);
}

static inline unsigned short wpk_float_to_bfloat(float x) {
  unsigned bits = wpk_float_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
