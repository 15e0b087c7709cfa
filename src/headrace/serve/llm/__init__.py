"""Language models (Ray Serve's), which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class, unsupported_function

CloudMirrorConfig = unsupported_class("llm", "CloudMirrorConfig")
LLMConfig = unsupported_class("llm", "LLMConfig")
LLMServer = unsupported_class("llm", "LLMServer")
LLMServingArgs = unsupported_class("llm", "LLMServingArgs")
LoraConfig = unsupported_class("llm", "LoraConfig")
ModelLoadingConfig = unsupported_class("llm", "ModelLoadingConfig")
build_dp_deployment = unsupported_function("llm", "build_dp_deployment", "deploy a class that calls the engine")
build_dp_openai_app = unsupported_function("llm", "build_dp_openai_app", "deploy a class that calls the engine")
build_llm_deployment = unsupported_function("llm", "build_llm_deployment", "deploy a class that calls the engine")
build_openai_app = unsupported_function("llm", "build_openai_app", "deploy a class that calls the engine")
build_pd_openai_app = unsupported_function("llm", "build_pd_openai_app", "deploy a class that calls the engine")

__all__ = [
    "CloudMirrorConfig",
    "LLMConfig",
    "LLMServer",
    "LLMServingArgs",
    "LoraConfig",
    "ModelLoadingConfig",
    "build_dp_deployment",
    "build_dp_openai_app",
    "build_llm_deployment",
    "build_openai_app",
    "build_pd_openai_app",
]
