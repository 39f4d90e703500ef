// The facts that vde-export writes beside an export, MODEL.json: what goes in, what comes out, how it was computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace example {

// A value of JSON. Numbers are doubles, which hold every size here exactly.
struct Json {
  enum Kind { null, boolean, number, text, list, object } kind = null;
  double value = 0;
  std::string string;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  const Json& at(const std::string& name) const {
    const auto found = members.find(name);
    if (found == members.end()) throw std::runtime_error("it has no " + name);
    return found->second;
  }
};

class JsonReader {
 public:
  explicit JsonReader(std::string text) : text_(std::move(text)) {}

  Json read() {
    Json json = value(0);
    if (peek() != 0) fail();
    return json;
  }

 private:
  Json value(int depth) {
    if (depth > 64) fail();
    Json json;
    const char first = peek();
    if (first == '{') {
      json.kind = Json::object;
      for (separated s(*this, '{', '}'); s.more();) {
        peek();
        const std::string name = quoted();
        expect(':');
        json.members[name] = value(depth + 1);
      }
    } else if (first == '[') {
      json.kind = Json::list;
      for (separated s(*this, '[', ']'); s.more();) json.items.push_back(value(depth + 1));
    } else if (first == '"') {
      json.kind = Json::text;
      json.string = quoted();
    } else if (word("null")) {
    } else if (word("true") || word("false")) {
      json.kind = Json::boolean;
      json.value = text_[at_ - 2] == 'u';  // tr-u-e, fal-s-e
    } else {
      json.kind = Json::number;
      const std::size_t end = text_.find_first_not_of("+-.0123456789eE", at_);
      std::size_t used = 0;
      const std::string digits = text_.substr(at_, end - at_);
      try {
        json.value = std::stod(digits, &used);
      } catch (const std::exception&) {
      }
      if (used != digits.size() || !used) fail();
      at_ += used;
    }
    return json;
  }

  // Steps over a list's brackets and commas.
  class separated {
   public:
    separated(JsonReader& reader, char open, char close) : reader_(reader), close_(close) { reader_.expect(open); }
    bool more() {
      if (reader_.peek() == close_) return ++reader_.at_, false;
      if (!first_) reader_.expect(',');
      first_ = false;
      return true;
    }

   private:
    JsonReader& reader_;
    char close_;
    bool first_ = true;
  };

  char peek() {
    at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  void expect(char wanted) {
    if (peek() != wanted) fail();
    ++at_;
  }

  bool word(const std::string& wanted) {
    if (text_.compare(at_, wanted.size(), wanted) != 0) return false;
    at_ += wanted.size();
    return true;
  }

  // Letters beyond ASCII, as \u1234, become '?': the names read here have none.
  std::string quoted() {
    std::string out;
    if (text_[at_] != '"') fail();
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] != '\\') {
        out += text_[at_];
      } else if (++at_ < text_.size() && text_[at_] == 'u') {
        at_ += 4;
        out += '?';
      } else {
        const std::size_t known = std::string("bfnrt").find(text_[std::min(at_, text_.size() - 1)]);
        out += known == std::string::npos ? text_[std::min(at_, text_.size() - 1)] : "\b\f\n\r\t"[known];
      }
    }
    if (at_ >= text_.size()) fail();
    ++at_;
    return out;
  }

  [[noreturn]] void fail() { throw std::runtime_error("it is no JSON, at character " + std::to_string(at_)); }

  std::string text_;
  std::size_t at_ = 0;
};

struct Facts {
  std::string precision;             // fp32, fp16, bf16 or int8
  std::vector<std::string> outputs;  // in their order
  bool camera;                       // the input is a camera's uint8 frames
  std::vector<std::int64_t> frame;   // shape of one input without the batch; empty where the size is free
};

inline Facts read_facts(const std::string& model) {
  const std::string path = model + ".json";
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw std::runtime_error(path + " cannot be read; vde-export writes it beside the export, keep them together");
  try {
    const Json json = JsonReader({std::istreambuf_iterator<char>(file), {}}).read();
    Facts facts{json.at("precision").string, {}, false, {}};
    for (const Json& name : json.at("outputs").items) facts.outputs.push_back(name.string);
    if (facts.outputs.empty()) throw std::runtime_error("it names no outputs");
    const Json &camera = json.at("camera"), &size = json.at("size");
    facts.camera = camera.kind == Json::object;
    const auto side = [](const Json& number) { return static_cast<std::int64_t>(number.value); };
    if (facts.camera && camera.at("layout").string == "NHWC")
      facts.frame = {side(camera.at("height")), side(camera.at("width")), 3};
    else if (facts.camera)
      facts.frame = {3, side(camera.at("height")), side(camera.at("width"))};
    else if (size.items.size() == 2)
      facts.frame = {3, side(size.items[0]), side(size.items[1])};
    return facts;
  } catch (const std::exception& error) {
    throw std::runtime_error(path + " does not describe an export (" + error.what() + ")");
  }
}

}  // namespace example
