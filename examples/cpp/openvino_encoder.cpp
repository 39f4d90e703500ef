// Encodes with OpenVINO what `vde-export --format openvino` (an .xml) or `--format onnx` wrote.
#include <openvino/openvino.hpp>

#include "example.h"

void encode(const std::string& model, example::Input& input, const std::string& prefix) {
  ov::Core core;
  // Left to itself, OpenVINO computes in bf16 where the CPU can.
  auto compiled = core.compile_model(model, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                                     ov::hint::inference_precision(ov::element::f32));
  auto request = compiled.create_infer_request();
  request.set_input_tensor(ov::Tensor(input.is_uint8 ? ov::element::u8 : ov::element::f32,
                                      ov::Shape(input.shape.begin(), input.shape.end()), input.bytes.data()));
  example::time_calls([&] { request.infer(); });
  for (const auto& output : compiled.outputs()) {
    const ov::Tensor tensor = request.get_tensor(output);
    const ov::Shape shape = tensor.get_shape();
    example::write_output(prefix, output.get_any_name(), {shape.begin(), shape.end()}, tensor.data<const float>());
  }
}

int main(int argc, char** argv) { return example::run(argc, argv, encode); }
