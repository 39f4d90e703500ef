// What the examples share: tensors in plain files, and timing.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace example {

using Shape = std::vector<std::int64_t>;

inline std::int64_t count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

inline std::string text(const Shape& shape) {
  std::ostringstream out;
  for (std::size_t i = 0; i < shape.size(); ++i) out << (i ? "x" : "") << shape[i];
  return out.str();
}

// "1x3x224x224" -> {1, 3, 224, 224}
inline Shape parse_shape(const std::string& text) {
  Shape shape;
  std::istringstream in(text);
  for (std::string side; std::getline(in, side, 'x');) {
    if (side.empty() || side.size() > 9 || side.find_first_not_of("0123456789") != std::string::npos)
      throw std::invalid_argument("a shape is numbers with x between them, such as 1x3x224x224; got " + text);
    shape.push_back(std::stoll(side));
  }
  return shape;
}

// Normalised float32 pixels (B, 3, H, W), or the uint8 frames that an export with --uint8-input takes.
struct Input {
  Shape shape;
  bool is_uint8;
  std::vector<char> bytes;  // row-major, of this machine's byte order
};

// The file's size tells the type: one byte a value is uint8, four are float32.
inline Input read_input(const std::string& path, const Shape& shape) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto size = static_cast<std::int64_t>(bytes.size()), values = count(shape);
  if (values < 1 || (size != values && size != 4 * values))
    throw std::runtime_error(path + " holds " + std::to_string(size) + " bytes; " + text(shape) + " takes " +
                             std::to_string(values) + " as uint8 or " + std::to_string(4 * values) + " as float32");
  return {shape, size == values, std::move(bytes)};
}

// Writes PREFIX.NAME.f32, row-major, and says its shape.
inline void write_output(const std::string& prefix, const std::string& name, const Shape& shape, const float* values) {
  const std::string path = prefix + "." + name + ".f32";
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count(shape) * sizeof(float)));
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
  std::cout << name << " " << text(shape) << " -> " << path << "\n";
}

// Prints the time of 20 calls; the ones before them, which allocate and warm up, are not counted.
template <class Call>
void time_calls(Call call) {
  for (int i = 0; i < 3; ++i) call();
  std::vector<double> milliseconds(20);
  for (double& time : milliseconds) {
    const auto start = std::chrono::steady_clock::now();
    call();
    time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::cout << "20 calls: median " << milliseconds[10] << " ms, fastest " << milliseconds[0] << " ms\n";
}

// The whole of main: reads the command line, calls encode(model, input, prefix), and prints errors.
template <class Encode>
int run(int argc, char** argv, Encode encode) {
  if (argc != 5) {
    std::cerr << "usage: " << argv[0] << " MODEL INPUT SHAPE OUT\n"
              << "reads INPUT, raw float32 or uint8 of SHAPE (1x3x224x224); writes OUT.cls.f32 and the other outputs\n";
    return 2;
  }
  try {
    Input input = read_input(argv[2], parse_shape(argv[3]));
    encode(std::string(argv[1]), input, std::string(argv[4]));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}

}  // namespace example
