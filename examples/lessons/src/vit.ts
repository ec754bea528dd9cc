/**
 * A small vision transformer ("An Image is Worth 16x16 Words", Dosovitskiy et al. 2021; shaped after lucidrains' vit-pytorch,
 * SimpleViT's predecessor, github.com/lucidrains/vit-pytorch): patches of an image as tokens, a class token in front, an encoder. The
 * images are drawn by rule: squares, crosses, rings and stripes, anywhere, with noise.
 */
import {
  AdamW,
  Conv2d,
  cat,
  crossEntropy,
  hostRandint,
  LayerNorm,
  Linear,
  Module,
  manualSeed,
  noGrad,
  parameter,
  randn,
  type Tensor,
  TransformerEncoder,
  TransformerEncoderLayer,
  tensor,
} from 'tilegrad'

const size = 16
const kinds = ['square', 'cross', 'ring', 'stripes'] as const

const drawn = {
  square: (x: number, y: number) => Math.max(Math.abs(x), Math.abs(y)) <= 3,
  cross: (x: number, y: number) =>
    Math.min(Math.abs(x), Math.abs(y)) === 0 && Math.max(Math.abs(x), Math.abs(y)) <= 4,
  ring: (x: number, y: number) => Math.abs(Math.hypot(x, y) - 4) < 0.8,
  stripes: (x: number, y: number) => (x + 99) % 3 === 0 && Math.max(Math.abs(x), Math.abs(y)) <= 4,
}

/** Images (n, 1, size, size) of one shape each, and which one, (n). */
export function makeImages(n: number): [images: Tensor, labels: Tensor] {
  const pixels = new Float32Array(n * size * size)
  const labels = Int32Array.from({ length: n }, () => hostRandint(kinds.length))
  for (let i = 0; i < n; i++) {
    const [cx, cy] = [5 + hostRandint(size - 10), 5 + hostRandint(size - 10)]
    const inside = drawn[kinds[labels[i] as number] as (typeof kinds)[number]]
    for (let y = 0; y < size; y++)
      for (let x = 0; x < size; x++) pixels[(i * size + y) * size + x] = inside(x - cx, y - cy) ? 1 : 0
  }
  const images = tensor(pixels, [n, 1, size, size])
  return [images.add(randn(images.shape).mul(0.3)), tensor(labels)]
}

class ViT extends Module {
  toPatchEmbedding: Conv2d
  posEmbedding: Tensor
  clsToken: Tensor
  transformer: TransformerEncoder
  norm: LayerNorm
  mlpHead: Linear

  constructor({ patchSize = 4, dim = 32, depth = 2, heads = 4, mlpDim = 64 } = {}) {
    super()
    this.toPatchEmbedding = new Conv2d(1, dim, patchSize, { stride: patchSize })
    this.posEmbedding = parameter(randn([1, (size / patchSize) ** 2 + 1, dim]).mul(0.02))
    this.clsToken = parameter(randn([1, 1, dim]).mul(0.02))
    const layer = () =>
      new TransformerEncoderLayer(dim, heads, {
        dimFeedforward: mlpDim,
        dropout: 0,
        activation: 'gelu',
        batchFirst: true,
        normFirst: true,
      })
    this.transformer = new TransformerEncoder(layer(), depth)
    this.norm = new LayerNorm(dim)
    this.mlpHead = new Linear(dim, kinds.length)
  }

  forward(img: Tensor): Tensor {
    let x = this.toPatchEmbedding.forward(img).flatten(2).transpose(1, 2) // (B, dim, H, W) → (B, patches, dim)
    const clsTokens = this.clsToken.expand([x.size(0), -1, -1])
    x = cat([clsTokens, x], 1).add(this.posEmbedding)
    x = this.transformer.forward(x)
    return this.mlpHead.forward(this.norm.forward(x.at(':', 0)))
  }
}

export async function main({ steps = 300, batchSize = 32, log = console.log } = {}): Promise<number> {
  manualSeed(42)
  const model = new ViT()
  log(`${model.numParameters()} parameters`)
  const optimizer = new AdamW(model.parameters(), { lr: 2e-3, weightDecay: 0.01 })
  for (let i = 0; i < steps; i++) {
    const [images, labels] = makeImages(batchSize)
    const loss = crossEntropy(model.forward(images), labels)
    optimizer.zeroGrad()
    loss.backward()
    optimizer.step()
    if (i % 50 === 0) log(`step ${i}: loss ${(await loss.item()).toFixed(4)}`)
  }
  model.eval()
  const [images, labels] = makeImages(200)
  const accuracy = await noGrad(() => model.forward(images).argmax(1).eq(labels).to('float32').mean()).item()
  log(`accuracy on new images: ${(100 * accuracy).toFixed(1)} %`)
  return accuracy
}
