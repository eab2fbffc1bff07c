// What the kernels need of CUDA, for a C++ compiler: found in place of CUDA's own header of this name.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__

struct dim3 {
    unsigned x, y, z;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 blockIdx, threadIdx, blockDim;

// IEEE 754 binary16, rounded to nearest, ties to even, as the GPU does.
class __half {
public:
    __half() = default;

    explicit __half(float value) {
        std::uint32_t word;
        std::memcpy(&word, &value, 4);
        const std::uint32_t sign = word >> 16 & 0x8000, magnitude = word & 0x7fffffff;
        if (magnitude > 0x7f800000) {
            bits = sign | 0x7fff;
        } else if (magnitude >= 0x477ff000) {  // rounds to more than 65504
            bits = sign | 0x7c00;
        } else if (magnitude < 0x38800000) {  // subnormal: a multiple of 2^-24
            bits = sign | static_cast<std::uint32_t>(std::nearbyint(std::fabs(value) * 16777216.0f));
        } else {
            bits = sign | ((magnitude + 0xfff + (magnitude >> 13 & 1)) - 0x38000000) >> 13;
        }
    }

    operator float() const {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                                     : std::ldexp(static_cast<float>(fraction), -24);
        return bits & 0x8000 ? -value : value;
    }

private:
    std::uint16_t bits;
};
