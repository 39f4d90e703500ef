// A place for one frame: a newer one takes the place of one that still waits, so nobody works on old pictures.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

namespace example {

using Clock = std::chrono::steady_clock;

template <class Frame>
class Newest {
 public:
  struct Taken {
    Frame frame;
    Clock::time_point time;  // when it was put
    long dropped;            // frames since the one taken before that nobody took
  };

  // Does not wait for whoever takes.
  void put(Frame frame) {
    {
      const std::lock_guard lock(mutex_);
      dropped_ += waiting_.has_value();
      waiting_.emplace(std::move(frame), Clock::now());
    }
    changed_.notify_one();
  }

  // Waits for a frame that was not taken yet; nothing when the camera has closed and the last one was taken.
  std::optional<Taken> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || waiting_; });
    if (!waiting_) return std::nullopt;
    Taken taken{std::move(waiting_->first), waiting_->second, std::exchange(dropped_, 0)};
    waiting_.reset();
    return taken;
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    changed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::pair<Frame, Clock::time_point>> waiting_;
  long dropped_ = 0;
  bool closed_ = false;
};

}  // namespace example
