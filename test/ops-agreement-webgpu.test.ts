import { afterAll } from 'vitest'
import { sharedGpu } from '../packages/backend-webgpu/test/support/shared-gpu.ts'
import { testAgreement } from './agreement.ts'

const shared = await sharedGpu()
const [full, plain] = [shared.full(), shared.plain()]
afterAll(() => full.close())

testAgreement('webgpu', full)
testAgreement('webgpu with default limits', plain)
