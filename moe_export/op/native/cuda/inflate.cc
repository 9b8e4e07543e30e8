#include "cuda/inflate.h"

#include <algorithm>
#include <array>

namespace moe_export {
namespace {

struct Damaged {};

class Bits {
 public:
  Bits(const uint8_t* data, size_t bytes) : next_(data), end_(data + bytes) {}

  uint32_t take(int count) {
    while (held_ < count) {
      if (next_ == end_) throw Damaged();
      word_ |= static_cast<uint64_t>(*next_++) << held_;
      held_ += 8;
    }
    const uint32_t value = static_cast<uint32_t>(word_ & ((uint64_t{1} << count) - 1));
    word_ >>= count;
    held_ -= count;
    return value;
  }

  void to_next_byte() { take(held_ % 8); }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
  uint64_t word_ = 0;
  int held_ = 0;
};

constexpr int kLongestCode = 15;

// A Huffman code, given by the lengths of its words. Words of one length are consecutive numbers,
// in the order of their symbols.
class Code {
 public:
  Code(const uint8_t* lengths, size_t symbols) {
    for (size_t i = 0; i < symbols; ++i) ++count_[lengths[i]];
    count_[0] = 0;
    std::array<uint16_t, kLongestCode + 2> first{};
    for (size_t i = 1; i <= kLongestCode; ++i) {
      first[i + 1] = static_cast<uint16_t>(first[i] + count_[i]);
    }
    symbols_.resize(symbols);
    for (size_t i = 0; i < symbols; ++i) {
      if (lengths[i] > 0) symbols_[first[lengths[i]]++] = static_cast<uint16_t>(i);
    }
  }

  uint16_t read(Bits& bits) const {
    int word = 0, first = 0, index = 0;
    for (size_t length = 1; length <= kLongestCode; ++length) {
      word |= static_cast<int>(bits.take(1));
      const int count = count_[length];
      if (word - first < count) return symbols_[static_cast<size_t>(index + word - first)];
      index += count;
      first = (first + count) << 1;
      word <<= 1;
    }
    throw Damaged();
  }

 private:
  std::array<uint16_t, kLongestCode + 1> count_{};
  std::vector<uint16_t> symbols_;
};

// Lengths and distances of copies: a base, and a number of bits to read and add (RFC 1951, 3.2.5).
constexpr uint16_t kLengthBase[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                    31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
constexpr uint8_t kLengthBits[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                   2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
constexpr uint16_t kDistanceBase[] = {
    1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
    193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
constexpr uint8_t kDistanceBits[] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                     6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};

class Inflate {
 public:
  Inflate(const uint8_t* data, size_t bytes, size_t size) : bits_(data, bytes), size_(size) {
    out_.reserve(size);
  }

  std::vector<uint8_t> run() {
    const uint32_t head = bits_.take(16);
    if ((head & 0x0f) != 8 || (head >> 13 & 1) != 0) throw Damaged();
    bool last = false;
    while (!last) {
      last = bits_.take(1) != 0;
      switch (bits_.take(2)) {
        case 0:
          stored();
          break;
        case 1:
          fixed();
          break;
        case 2:
          dynamic();
          break;
        default:
          throw Damaged();
      }
    }
    bits_.to_next_byte();
    check_sum();
    return std::move(out_);
  }

 private:
  void put(uint8_t byte) {
    if (out_.size() == size_) throw Damaged();
    out_.push_back(byte);
  }

  void stored() {
    bits_.to_next_byte();
    const uint32_t count = bits_.take(16);
    if ((count ^ bits_.take(16)) != 0xffff) throw Damaged();
    for (uint32_t i = 0; i < count; ++i) put(static_cast<uint8_t>(bits_.take(8)));
  }

  void fixed() {
    uint8_t lengths[288];
    std::fill(lengths, lengths + 144, uint8_t{8});
    std::fill(lengths + 144, lengths + 256, uint8_t{9});
    std::fill(lengths + 256, lengths + 280, uint8_t{7});
    std::fill(lengths + 280, lengths + 288, uint8_t{8});
    uint8_t distances[30];
    std::fill(distances, distances + 30, uint8_t{5});
    copies(Code(lengths, 288), Code(distances, 30));
  }

  void dynamic() {
    constexpr uint8_t kOrder[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const size_t literals = bits_.take(5) + 257, distances = bits_.take(5) + 1;
    const size_t used = bits_.take(4) + 4;
    if (literals > 286 || distances > 30) throw Damaged();
    uint8_t lengths[286 + 30] = {};
    for (size_t i = 0; i < used; ++i) lengths[kOrder[i]] = static_cast<uint8_t>(bits_.take(3));
    const Code code(lengths, 19);
    std::fill(lengths, lengths + 19, uint8_t{0});
    for (size_t i = 0; i < literals + distances;) {
      const uint16_t symbol = code.read(bits_);
      if (symbol < 16) {
        lengths[i++] = static_cast<uint8_t>(symbol);
        continue;
      }
      if (symbol == 16 && i == 0) throw Damaged();
      const uint8_t value = symbol == 16 ? lengths[i - 1] : uint8_t{0};
      const size_t times = symbol == 16   ? 3 + bits_.take(2)
                           : symbol == 17 ? 3 + bits_.take(3)
                                          : 11 + bits_.take(7);
      if (i + times > literals + distances) throw Damaged();
      std::fill(lengths + i, lengths + i + times, value);
      i += times;
    }
    copies(Code(lengths, literals), Code(lengths + literals, distances));
  }

  void copies(const Code& literals, const Code& distances) {
    for (;;) {
      const uint16_t symbol = literals.read(bits_);
      if (symbol == 256) return;
      if (symbol < 256) {
        put(static_cast<uint8_t>(symbol));
        continue;
      }
      const size_t which = symbol - 257u;
      if (which >= sizeof kLengthBits) throw Damaged();
      const size_t length = kLengthBase[which] + bits_.take(kLengthBits[which]);
      const uint16_t far = distances.read(bits_);
      if (far >= sizeof kDistanceBits) throw Damaged();
      const size_t distance = kDistanceBase[far] + bits_.take(kDistanceBits[far]);
      if (distance > out_.size()) throw Damaged();
      for (size_t i = 0; i < length; ++i) put(out_[out_.size() - distance]);
    }
  }

  // Checks Adler-32, stored with the highest byte first.
  void check_sum() {
    uint32_t a = 1, b = 0;
    for (const uint8_t byte : out_) {
      a = (a + byte) % 65521;
      b = (b + a) % 65521;
    }
    uint32_t expected = 0;
    for (int i = 0; i < 4; ++i) expected = expected << 8 | bits_.take(8);
    if (expected != (b << 16 | a) || out_.size() != size_) throw Damaged();
  }

  Bits bits_;
  const size_t size_;
  std::vector<uint8_t> out_;
};

}  // namespace

std::vector<uint8_t> inflate(const uint8_t* data, size_t data_bytes, size_t size) try {
  return Inflate(data, data_bytes, size).run();
} catch (const Damaged&) {
  return {};
}

}  // namespace moe_export
