// Encodes with OpenVINO what `vde-export --format openvino` (an .xml) or `--format onnx` wrote.
#include <openvino/openvino.hpp>

#include "example.h"

class OpenVinoEncoder {
 public:
  OpenVinoEncoder(const std::string& model, const example::Facts& facts, const example::Shape& shape, bool is_uint8,
                  const std::string& device)
      : type_(is_uint8 ? ov::element::u8 : ov::element::f32),
        shape_(shape.begin(), shape.end()),
        names_(facts.outputs) {
    ov::Core core;
    auto compiled = core.compile_model(model, device, ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                                       ov::hint::inference_precision(compute_type(core, device, facts.precision)));
    request_ = compiled.create_infer_request();
  }

  std::vector<example::Output> operator()(char* pixels) {
    request_.set_input_tensor(ov::Tensor(type_, shape_, pixels));
    request_.infer();
    std::vector<example::Output> outputs;
    for (const auto& name : names_) {
      const ov::Tensor tensor = request_.get_tensor(name);
      const ov::Shape shape = tensor.get_shape();
      outputs.push_back({name, {shape.begin(), shape.end()}, tensor.data<const float>()});
    }
    return outputs;
  }

 private:
  // Said in every case: left to itself, OpenVINO computes in bf16 where the CPU can.
  static ov::element::Type compute_type(ov::Core& core, const std::string& device, const std::string& precision) {
    if (precision != "fp16" && precision != "bf16") return ov::element::f32;  // what int8 leaves unquantised, too
    const auto can = core.get_property(device, ov::device::capabilities);
    const bool half = precision == "fp16";
    if (std::find(can.begin(), can.end(), half ? "FP16" : "BF16") != can.end())
      return half ? ov::element::f16 : ov::element::bf16;
    if (!half) throw std::runtime_error("this " + device + " does not compute in bf16; export fp32");
    return ov::element::f32;  // the weights are stored in half, and computed with in full
  }

  ov::element::Type type_;
  ov::Shape shape_;
  std::vector<std::string> names_;
  ov::InferRequest request_;
};

int main(int argc, char** argv) { return example::run<OpenVinoEncoder>(argc, argv, "CPU"); }
