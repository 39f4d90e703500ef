// Encodes with ONNX Runtime, on the CPU or with CUDA, what `vde-export --format onnx` wrote.
#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <memory>

#include "example.h"

class OnnxEncoder {
 public:
  OnnxEncoder(const std::string& model, const example::Facts& facts, const example::Shape& shape, bool is_uint8,
              const std::string& device)
      : shape_(shape),
        type_(is_uint8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
        bytes_(static_cast<std::size_t>(example::count(shape)) * (is_uint8 ? 1 : sizeof(float))),
        names_(facts.outputs) {
    Ort::SessionOptions options;
    if (device.rfind("cuda", 0) == 0) {
      use_cuda(options, device.size() > 5 ? device.substr(5) : "0");
      run_options_.AddConfigEntry("gpu_graph_id", "-1");  // none is recorded: the buffers are the caller's
    } else if (device != "cpu") {
      throw std::runtime_error("the device is cpu, cuda or cuda:1; got " + device);
    }
    session_ = Ort::Session(environment_, std::filesystem::path(model).c_str(), options);
    const Ort::AllocatorWithDefaultOptions allocator;
    input_name_ = session_.GetInputNameAllocated(0, allocator).get();
    for (const auto& name : names_) output_names_.push_back(name.c_str());
    // The first call allocates the outputs; later ones write into the same memory.
    for (std::size_t i = 0; i < names_.size(); ++i) outputs_.emplace_back(nullptr);
  }

  std::vector<example::Output> operator()(char* pixels) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const auto tensor = Ort::Value::CreateTensor(memory, pixels, bytes_, shape_.data(), shape_.size(), type_);
    const char* input = input_name_.c_str();
    session_.Run(run_options_, &input, &tensor, 1, output_names_.data(), outputs_.data(), outputs_.size());
    std::vector<example::Output> outputs;
    for (std::size_t i = 0; i < names_.size(); ++i) {
      const auto shape = outputs_[i].GetTensorTypeAndShapeInfo().GetShape();
      outputs.push_back({names_[i], shape, outputs_[i].GetTensorData<float>()});
    }
    return outputs;
  }

 private:
  // Never silently the CPU: throws where CUDA cannot be used; and, with graphs enabled, making the session throws where
  // CUDA does not run the network as a whole. Nor silently TF32.
  static void use_cuda(Ort::SessionOptions& options, const std::string& number) {
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&cuda));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> owner(
        cuda, [](OrtCUDAProviderOptionsV2* it) { Ort::GetApi().ReleaseCUDAProviderOptions(it); });
    const char* keys[] = {"device_id", "use_tf32", "enable_cuda_graph"};
    const char* values[] = {number.c_str(), "0", "1"};
    Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(cuda, keys, values, 3));
    options.AppendExecutionProvider_CUDA_V2(*cuda);
  }

  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "encoder"};
  Ort::Session session_{nullptr};
  Ort::RunOptions run_options_;
  example::Shape shape_;
  ONNXTensorElementDataType type_;
  std::size_t bytes_;
  std::vector<std::string> names_;
  std::string input_name_;
  std::vector<const char*> output_names_;
  std::vector<Ort::Value> outputs_;
};

int main(int argc, char** argv) { return example::run<OnnxEncoder>(argc, argv, "cpu"); }
