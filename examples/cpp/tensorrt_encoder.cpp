// Encodes with TensorRT 10 or 11 what `vde-export --format tensorrt` wrote. Compiled against NVIDIA's headers; it has
// not yet run on a GPU. An engine is native code: load only your own.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <memory>

#include "example.h"

namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) last = message;
  }
  std::string last = "it gives no reason";
};

// Memory of the GPU and a stream, freed with their owner.
struct Free {
  void operator()(void* memory) const { cudaFree(memory); }
};
using Buffer = std::unique_ptr<void, Free>;
struct Destroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};

Buffer allocate(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes));
  return Buffer(memory);
}

std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

class TensorRtEncoder {
 public:
  TensorRtEncoder(const std::string& model, const example::Facts& facts, const example::Shape& shape, bool is_uint8,
                  const std::string& device)
      : bytes_(static_cast<std::size_t>(example::count(shape)) * (is_uint8 ? 1 : sizeof(float))) {
    check(cudaSetDevice(device.size() > 5 ? std::stoi(device.substr(5)) : 0));
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    if (!runtime_) throw std::runtime_error("TensorRT cannot start here: " + log_.last);
    const std::vector<char> engine = read(model);
    engine_.reset(runtime_->deserializeCudaEngine(engine.data(), engine.size()));
    if (!engine_) throw std::runtime_error(model + " cannot be loaded by TensorRT: " + log_.last);
    context_.reset(engine_->createExecutionContext());
    if (!context_) throw std::runtime_error("TensorRT cannot run " + model + ": " + log_.last);
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);

    const char* input = facts.camera ? "frames" : "pixel_values";
    require_type(input, is_uint8 ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT);
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    if (dims.nbDims > nvinfer1::Dims::MAX_DIMS) throw std::runtime_error("the shape has too many sides");
    std::copy(shape.begin(), shape.end(), dims.d);
    if (!context_->setInputShape(input, dims))
      throw std::runtime_error("the engine does not take inputs of " + example::text(shape) + ": " + log_.last);
    input_ = allocate(bytes_);
    bind(input, input_.get());
    for (const auto& name : facts.outputs) {
      require_type(name.c_str(), nvinfer1::DataType::kFLOAT);
      const nvinfer1::Dims found = context_->getTensorShape(name.c_str());
      example::Shape sides(found.d, found.d + found.nbDims);
      const auto values = static_cast<std::size_t>(example::count(sides));
      on_device_.push_back(allocate(values * sizeof(float)));
      on_host_.emplace_back(values);
      outputs_.push_back({name, std::move(sides), on_host_.back().data()});
      bind(name.c_str(), on_device_.back().get());
    }
  }

  std::vector<example::Output> operator()(char* pixels) {
    check(cudaMemcpyAsync(input_.get(), pixels, bytes_, cudaMemcpyHostToDevice, stream_.get()));
    if (!context_->enqueueV3(stream_.get())) throw std::runtime_error("TensorRT cannot run the engine: " + log_.last);
    for (std::size_t i = 0; i < outputs_.size(); ++i)
      check(cudaMemcpyAsync(on_host_[i].data(), on_device_[i].get(), on_host_[i].size() * sizeof(float),
                            cudaMemcpyDeviceToHost, stream_.get()));
    check(cudaStreamSynchronize(stream_.get()));
    return outputs_;
  }

 private:
  void bind(const char* name, void* memory) {
    if (!context_->setTensorAddress(name, memory)) throw std::runtime_error(std::string("the engine has no ") + name);
  }

  // Buffers are sized by the types that the JSON speaks of.
  void require_type(const char* name, nvinfer1::DataType wanted) {
    if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kNONE || engine_->getTensorDataType(name) != wanted)
      throw std::runtime_error(std::string("the engine's ") + name + " is not what its JSON says, or the input's type");
  }

  // In this order: what is destroyed first stands last.
  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::size_t bytes_;
  std::unique_ptr<CUstream_st, Destroy> stream_;
  Buffer input_;
  std::vector<Buffer> on_device_;
  std::vector<std::vector<float>> on_host_;
  std::vector<example::Output> outputs_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

}  // namespace

int main(int argc, char** argv) { return example::run<TensorRtEncoder>(argc, argv, "cuda"); }
