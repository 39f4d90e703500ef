// Encodes with torch's AOTInductor what `vde-export --format aoti` wrote, on the device it was compiled for.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdlib>
#include <memory>

#include "example.h"

class AotiEncoder {
 public:
  AotiEncoder(const std::string& model, const example::Facts& facts, const example::Shape& shape, bool is_uint8,
              const std::string&)
      : package_(open(model)),
        device_(package_->get_metadata().at("AOTI_DEVICE_KEY")),
        shape_(shape),
        type_(is_uint8 ? at::kByte : at::kFloat),
        names_(facts.outputs) {}

  std::vector<example::Output> operator()(char* pixels) {
    try {
      const c10::InferenceMode inference;
      outputs_ = package_->run({at::from_blob(pixels, shape_, type_).to(device_)});
      for (auto& output : outputs_) output = output.cpu().contiguous();
    } catch (const c10::Error& error) {
      throw std::runtime_error(error.what_without_backtrace());
    }
    if (outputs_.size() != names_.size())
      throw std::runtime_error("the package has " + std::to_string(outputs_.size()) + " outputs, and its JSON names " +
                               std::to_string(names_.size()) + "; export it again");
    std::vector<example::Output> outputs;
    for (std::size_t i = 0; i < names_.size(); ++i)  // a package does not name them: the JSON has their order
      outputs.push_back({names_[i], outputs_[i].sizes().vec(), outputs_[i].const_data_ptr<float>()});
    return outputs;
  }

 private:
  using Package = torch::inductor::AOTIModelPackageLoader;

  static std::unique_ptr<Package> open(const std::string& model) {
    try {
      return std::make_unique<Package>(model);
    } catch (const c10::Error& error) {
      throw std::runtime_error(error.what_without_backtrace());
    }
  }

  std::unique_ptr<Package> package_;
  c10::Device device_;
  example::Shape shape_;
  at::ScalarType type_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> outputs_;
};

int main(int argc, char** argv) {
  // Without this a package takes any shape and type for its own, and reads past the end of the memory.
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
  at::globalContext().setAllowTF32CuDNN(false);  // fp32 is float32, not TF32
  return example::run<AotiEncoder>(argc, argv, "");
}
