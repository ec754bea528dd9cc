import { createHash } from 'node:crypto'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/**
 * Files that take longest on a software adapter, the longest first, by parts of their paths. What is long and begins last
 * leaves the other worker with nothing to do.
 */
const LONG = [
  'test/webgpu-compiles',
  'backend-webgpu/test/joined',
  'backend-webgpu/test/matmul',
  'backend-webgpu/test/attention',
  'test/ops-agreement-webgpu',
  'test/webgpu-recorded',
  'test/ring-attention',
  'test/attention-layout',
  'backend-webgpu/test/linear-attention',
  'test/browser',
  'examples/tiny-transformer/test/cli',
  'examples/tiny-transformer/test/keeping',
  'backend-cpu/test/attention-sparse',
  'test/gated-linear-attention',
  'test/decoding',
  'backend-cpu/test/pool.test',
  'test/packages',
  'webgpu',
  'backend-cpu/test/attention',
  'core/test/linear-attention',
  'nn/test/attention-kinds',
  'test/conformance',
  'backend-cpu/test/foreach',
  'nn/test/linear-attention',
  'docs/examples',
  'core/test/expr',
  'backend-cpu/test/linear-attention',
  'backend-cpu/test/elementwise',
  'test/ops-agreement-cpu',
  'test/right-numbers',
  'test/fused-backward',
  'backend-cpu/test/math',
  'backend-cpu/test/pool-process',
  'test/training.test',
]

const rank = ({ moduleId }: TestSpecification): number => {
  const place = LONG.findIndex((part) => moduleId.replaceAll('\\', '/').includes(part))
  return place < 0 ? LONG.length : place
}

/** The order of test files: the longest first, or shuffled by a seed with `--sequence.shuffle`. */
export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const { shuffle, seed } = this.ctx.config.sequence
    const draw = (file: TestSpecification): string =>
      createHash('sha1').update(`${seed} ${file.moduleId}`).digest('hex')
    if (shuffle) return files.sort((a, b) => (draw(a) < draw(b) ? -1 : 1))
    return (await super.sort(files)).sort((a, b) => rank(a) - rank(b))
  }
}
