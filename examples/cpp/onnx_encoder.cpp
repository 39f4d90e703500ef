// Encodes with ONNX Runtime what `vde-export --format onnx` wrote.
#include <onnxruntime_cxx_api.h>

#include <filesystem>

#include "example.h"

void encode(const std::string& model, example::Input& input, const std::string& prefix) {
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "encoder");
  Ort::SessionOptions options;
  Ort::Session session(environment, std::filesystem::path(model).c_str(), options);

  const auto type = input.is_uint8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
  const auto tensor = Ort::Value::CreateTensor(memory, input.bytes.data(), input.bytes.size(), input.shape.data(),
                                               input.shape.size(), type);

  Ort::AllocatorWithDefaultOptions allocator;
  const auto input_name = session.GetInputNameAllocated(0, allocator);
  const char* input_names[] = {input_name.get()};
  std::vector<Ort::AllocatedStringPtr> names;
  std::vector<const char*> output_names;
  for (std::size_t i = 0; i < session.GetOutputCount(); ++i) {
    names.push_back(session.GetOutputNameAllocated(i, allocator));
    output_names.push_back(names.back().get());
  }

  // The first call allocates the outputs; later ones write into the same memory.
  std::vector<Ort::Value> outputs;
  for (std::size_t i = 0; i < names.size(); ++i) outputs.emplace_back(nullptr);
  example::time_calls([&] {
    session.Run(Ort::RunOptions{nullptr}, input_names, &tensor, 1, output_names.data(), outputs.data(), outputs.size());
  });
  for (std::size_t i = 0; i < names.size(); ++i)
    example::write_output(prefix, output_names[i], outputs[i].GetTensorTypeAndShapeInfo().GetShape(),
                          outputs[i].GetTensorData<float>());
}

int main(int argc, char** argv) { return example::run(argc, argv, encode); }
