// Answers samples with the model beside it, by onnxruntime's C++ API:  ./consumer < samples.csv
// A line is a sample: its raw values in row order, separated by commas or blanks. README.md says how to build it.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
    try {
        Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "edge_cl");
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(1);
        Ort::Session session(env, argc > 1 ? argv[1] : "model.onnx", options);

        // The first dimension is the batch, which any size fits.
        std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
        shape[0] = 1;
        int64_t size = 1;
        for (int64_t dimension : shape) size *= dimension;

        // The labels, as a JSON list of strings: the model carries them itself.
        Ort::AllocatorWithDefaultOptions allocator;
        const auto labels = session.GetModelMetadata().LookupCustomMetadataMapAllocated("labels", allocator);
        const bool has_classes = labels && std::string(labels.get()) != "[]";
        std::cout << "labels " << (labels ? labels.get() : "[]") << "\n";

        const char* inputs[] = {"input"};
        const char* outputs[] = {has_classes ? "probabilities" : "score"};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        for (std::string line; std::getline(std::cin, line);) {
            std::replace(line.begin(), line.end(), ',', ' ');
            std::istringstream text(line);
            std::vector<float> values;
            for (float value; text >> value;) values.push_back(value);
            if (values.empty()) continue;
            if (static_cast<int64_t>(values.size()) != size) {
                std::cerr << "a sample has " << size << " values, this line " << values.size() << "\n";
                return EXIT_FAILURE;
            }
            const auto input =
                Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
            const auto answer = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
            const float* first = answer[0].GetTensorData<float>();
            const size_t count = answer[0].GetTensorTypeAndShapeInfo().GetElementCount();
            const float* best = std::max_element(first, first + count);
            if (has_classes) std::cout << "class " << best - first << " ";
            std::cout << *best << std::endl;
        }
    } catch (const Ort::Exception& error) {
        std::cerr << error.what() << "\n";
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
