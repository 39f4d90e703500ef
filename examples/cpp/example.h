// What the examples share: tensors in plain files, timing, and the loop of a camera.
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
#include <thread>
#include <utility>
#include <vector>

#include "facts.h"
#include "newest.h"

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

struct Output {
  std::string name;
  Shape shape;
  const float* values;  // row-major; good until the next call
};

// Writes PREFIX.NAME.f32 and says its shape.
inline void write_output(const std::string& prefix, const Output& output) {
  const std::string path = prefix + "." + output.name + ".f32";
  std::ofstream file(path, std::ios::binary);
  const auto size = count(output.shape) * static_cast<std::int64_t>(sizeof(float));
  file.write(reinterpret_cast<const char*>(output.values), size);
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
  std::cout << output.name << " " << text(output.shape) << " -> " << path << "\n";
}

// Prints the time of 20 calls; the ones before them, which allocate and warm up, are not counted.
template <class Call>
void time_calls(Call call) {
  for (int i = 0; i < 3; ++i) call();
  std::vector<double> milliseconds(20);
  for (double& time : milliseconds) {
    const auto start = Clock::now();
    call();
    time = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::cout << "20 calls: median " << milliseconds[10] << " ms, fastest " << milliseconds[0] << " ms\n";
}

// Encodes the newest of the raw frames that come through standard input, until there are no more.
template <class Encode>
void follow_camera(const Facts& facts, Encode& encode) {
  Newest<std::vector<char>> newest;
  std::thread camera([&] {
    std::vector<char> frame(static_cast<std::size_t>(count(facts.frame)));
    while (std::cin.read(frame.data(), static_cast<std::streamsize>(frame.size()))) newest.put(frame);
    newest.close();
  });
  try {
    while (auto taken = newest.take()) {
      const std::vector<Output> outputs = encode(taken->frame.data());
      // Here a robot acts on the outputs.
      const double age = std::chrono::duration<double, std::milli>(Clock::now() - taken->time).count();
      std::cout << outputs.front().name << "[0] " << outputs.front().values[0] << ", age " << age << " ms, dropped "
                << taken->dropped << std::endl;
    }
  } catch (...) {
    camera.detach();  // it may wait for a frame for ever; the process ends now
    throw;
  }
  camera.join();
}

// The whole of main. Encoder is made of (model, facts, shape, is_uint8, device), and called with pixels; without a
// default device the model has its own.
template <class Encoder>
int run(int argc, char** argv, const std::string& default_device) {
  std::vector<std::string> words(argv + 1, argv + argc);
  std::string device = default_device;
  if (words.size() > 1 && words[0] == "--device") {
    device = words[1];
    words.erase(words.begin(), words.begin() + 2);
  }
  const bool from_camera = words.size() == 2 && words[1] == "-";
  if (words.size() != 4 && !from_camera) {
    const std::string option = default_device.empty() ? "" : " [--device " + default_device + "]";
    std::cerr << "usage: " << argv[0] << option << " MODEL INPUT SHAPE OUT\n"
              << "reads INPUT, raw float32 or uint8 of SHAPE (1x3x224x224); writes OUT.cls.f32 and the other outputs\n"
              << "       " << argv[0] << option << " MODEL -\n"
              << "encodes the newest of the uint8 frames on standard input; MODEL has a camera's (--uint8-input)\n";
    return 2;
  }
  try {
    const Facts facts = read_facts(words[0]);
    if (from_camera) {
      if (!facts.camera)
        throw std::runtime_error(words[0] + " takes no frames; export it with --uint8-input HEIGHTxWIDTH");
      Shape shape = facts.frame;
      shape.insert(shape.begin(), 1);
      Encoder encoder(words[0], facts, shape, true, device);
      follow_camera(facts, encoder);
      return 0;
    }
    Input input = read_input(words[1], parse_shape(words[2]));
    Encoder encoder(words[0], facts, input.shape, input.is_uint8, device);
    std::vector<Output> outputs;
    time_calls([&] { outputs = encoder(input.bytes.data()); });
    for (const Output& output : outputs) write_output(words[3], output);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}

}  // namespace example
