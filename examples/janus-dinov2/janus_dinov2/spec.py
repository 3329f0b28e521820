import janus_plugins as jp


class DinoConfig(jp.ComponentConfig):
    image_size: int = 224
    width: int = 384
    depth: int = 12

    def facts(self):
        tokens = (self.image_size // 14) ** 2
        return jp.UnderstandingFacts(modality="image", width=self.width, tokens=tokens, max_tokens=tokens)


def processor(config):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return jp.ImageProcessor(config.image_size, mean=mean, std=std, tokens=config.facts().tokens)


@jp.hookimpl
def janus_components():
    code = {"factory": "janus_dinov2.model:Dino", "processor": "janus_dinov2.spec:processor", "contract": 1}
    return [jp.ComponentSpec(kind=jp.Kind.UNDERSTANDING_ENCODER, name="dinov2", config=DinoConfig, **code)]
