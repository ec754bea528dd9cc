/**
 * A checkpoint of Hugging Face (after "Generation with LLMs" and "Fine-tuning" of the transformers documentation, Apache-2.0,
 * github.com/huggingface/transformers): load config.json and model.safetensors, generate, train on a text of one's own, save what
 * transformers reads again.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  AdamW,
  loadPretrained,
  noGrad,
  type PretrainedConfig,
  savePretrained,
  type Tensor,
  tensor,
} from 'tilegrad'

/** `folder`: that of a GPT-2 or Llama checkpoint. `ids`: a text as its tokenizer numbers it. */
export async function main(
  folder: string,
  ids: readonly number[],
  { steps = 20, log = console.log } = {},
): Promise<{ before: number; after: number; weights: Uint8Array }> {
  const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as PretrainedConfig
  const model = loadPretrained(config, await readFile(join(folder, 'model.safetensors')))
  log(String(model))

  const inputIds = tensor([[...ids]], { dtype: 'int32' })
  const start = inputIds.slice(0, 4, { dim: 1 })
  const tokens = await model.eval().generate(start, { maxNewTokens: 8, temperature: 0 }).tensor()
  log('continued:', (await tokens.data()).join(' '))

  const lossOf = (): Tensor =>
    model.forward(inputIds.slice(0, -1, { dim: 1 }), inputIds.slice(1, undefined, { dim: 1 })).loss
  const before = await noGrad(lossOf).item()
  model.train()
  const optimizer = new AdamW(model.parameters(), { lr: 1e-3 })
  for (let i = 0; i < steps; i++) {
    const loss = lossOf()
    loss.backward()
    optimizer.step()
    optimizer.zeroGrad()
  }
  const after = await noGrad(lossOf).item()
  log(`loss ${before.toFixed(4)} → ${after.toFixed(4)}`)
  const { weights } = await savePretrained(model)
  return { before, after, weights }
}
