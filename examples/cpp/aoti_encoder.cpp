// Encodes with torch's AOTInductor what `vde-export --format aoti` wrote, on the device it was compiled for.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdlib>

#include "example.h"

// A package does not name its outputs; these are the ones of an export without --outputs, see "outputs" in its JSON.
const std::vector<std::string> NAMES = {"cls", "patches", "grid"};

void encode(const std::string& model, example::Input& input, const std::string& prefix) {
  c10::InferenceMode inference;
  torch::inductor::AOTIModelPackageLoader package(model);
  const c10::Device device(package.get_metadata().at("AOTI_DEVICE_KEY"));
  const auto pixels = at::from_blob(input.bytes.data(), input.shape, input.is_uint8 ? at::kByte : at::kFloat);

  std::vector<at::Tensor> outputs;
  example::time_calls([&] {
    outputs = package.run({pixels.to(device)});
    for (auto& output : outputs) output = output.cpu().contiguous();
  });
  if (outputs.size() != NAMES.size())
    throw std::runtime_error("the package has " + std::to_string(outputs.size()) + " outputs; name them in NAMES");
  for (std::size_t i = 0; i < NAMES.size(); ++i)
    example::write_output(prefix, NAMES[i], outputs[i].sizes().vec(), outputs[i].const_data_ptr<float>());
}

int main(int argc, char** argv) {
  // Without this a package takes any shape and type for its own, and reads past the end of the memory.
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
  return example::run(argc, argv, [](const auto& model, auto& input, const auto& prefix) {
    try {
      encode(model, input, prefix);
    } catch (const c10::Error& error) {
      throw std::runtime_error(error.what_without_backtrace());
    }
  });
}
