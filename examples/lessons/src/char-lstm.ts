/**
 * char-rnn ("The Unreasonable Effectiveness of Recurrent Neural Networks", Andrej Karpathy, 2015, github.com/karpathy/char-rnn): an
 * LSTM reads a text character by character, in pieces whose state goes on from one to the next, and then writes. Beside it a GPT of as
 * many parameters learns from as many characters, to compare a state that is carried along with attention.
 */
import {
  AdamW,
  clipGradNorm,
  crossEntropy,
  Embedding,
  GPT,
  Linear,
  LSTM,
  Module,
  manualSeed,
  multinomial,
  noGrad,
  softmax,
  type Tensor,
  zeros,
} from 'tilegrad'
import { encodeText, readText } from './text.ts'

const defaults = {
  rnnSize: 96,
  numLayers: 2,
  seqLength: 32,
  batchSize: 16,
  steps: 400,
  textLength: 200_000,
  log: console.log,
}

type State = [h: Tensor, c: Tensor]

class CharRNN extends Module {
  embedding: Embedding
  lstm: LSTM
  decoder: Linear

  constructor(vocabSize: number, rnnSize: number, numLayers: number) {
    super()
    this.embedding = new Embedding(vocabSize, rnnSize)
    this.lstm = new LSTM(rnnSize, rnnSize, { numLayers, batchFirst: true })
    this.decoder = new Linear(rnnSize, vocabSize)
  }

  forward(x: Tensor, state?: State): [logits: Tensor, state: State] {
    const [output, next] = this.lstm.forward(this.embedding.forward(x), state)
    return [this.decoder.forward(output), next]
  }
}

export async function main(options: Partial<typeof defaults> = {}): Promise<{ lstm: number; gpt: number }> {
  const { rnnSize, numLayers, seqLength, batchSize, steps, textLength, log } = { ...defaults, ...options }
  manualSeed(123)
  const { vocabSize, trainData, valData, decode } = encodeText(readText(textLength))
  // The text in batchSize long rows, which are read from left to right, a piece of each at a time.
  const rowsOf = (data: Tensor): Tensor => {
    const length = Math.floor(data.numel / batchSize)
    return data.slice(0, batchSize * length).reshape([batchSize, length])
  }
  const [train, val] = [rowsOf(trainData), rowsOf(valData)]
  const piece = (rows: Tensor, i: number): [x: Tensor, y: Tensor] => {
    const at = (i * seqLength) % ((rows.shape[1] as number) - seqLength)
    return [rows.slice(at, at + seqLength, { dim: 1 }), rows.slice(at + 1, at + seqLength + 1, { dim: 1 })]
  }

  const model = new CharRNN(vocabSize, rnnSize, numLayers)
  const optimizer = new AdamW(model.parameters(), { lr: 3e-3 })
  let state: State | undefined
  for (let i = 0; i < steps; i++) {
    const [x, y] = piece(train, i)
    const [logits, next] = model.forward(x, state)
    state = [next[0].detach(), next[1].detach()] // truncated backpropagation through time
    const loss = crossEntropy(logits.flatten(0, 1), y.flatten())
    optimizer.zeroGrad()
    loss.backward()
    clipGradNorm(model.parameters(), 5)
    optimizer.step()
    if (i % 100 === 0) log(`lstm ${i}/${steps}: ${(await loss.item()).toFixed(4)}`)
  }

  // As many parameters: 12 · width² in a block of attention.
  const width = 16 * Math.round(Math.sqrt((8 * numLayers * rnnSize ** 2) / (12 * 2)) / 16)
  const gpt = new GPT({ vocabSize, blockSize: seqLength, numLayers: 2, numHeads: 4, embedDim: width })
  const other = new AdamW(gpt.parameters(), { lr: 3e-3 })
  for (let i = 0; i < steps; i++) {
    const [x, y] = piece(train, i)
    const { loss } = gpt.forward(x, y)
    other.zeroGrad()
    loss.backward()
    other.step()
    if (i % 100 === 0) log(`gpt ${i}/${steps}: ${(await loss.item()).toFixed(4)}`)
  }

  const held = { lstm: 0, gpt: 0 }
  const count = 10
  for (let i = 0; i < count; i++) {
    const [x, y] = piece(val, i)
    held.lstm +=
      (await noGrad(() => crossEntropy(model.forward(x)[0].flatten(0, 1), y.flatten())).item()) / count
    held.gpt += (await noGrad(() => gpt.forward(x, y).loss).item()) / count
  }
  log(
    `held out, each piece from an empty state: lstm ${held.lstm.toFixed(4)} (${model.numParameters()} parameters), gpt ${held.gpt.toFixed(4)} (${gpt.numParameters()})`,
  )

  let token = zeros([1, 1], { dtype: 'int32' })
  const ids: number[] = []
  state = undefined
  for (let i = 0; i < 200; i++) {
    const [logits, next] = noGrad(() => model.forward(token, state))
    state = next
    token = multinomial(softmax(logits.at(':', -1), -1), 1)
    ids.push(await token.item())
  }
  log(decode(ids))
  return held
}
