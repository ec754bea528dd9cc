import { createWebGpuBackend } from '@tilegrad/backend-webgpu'
import { afterAll } from 'vitest'
import { testAgreement } from './agreement.ts'

// A file of its own: beside the one with all limits it takes the time of one.
const gpu = await createWebGpuBackend({ limits: 'default', features: 'default' })
afterAll(() => gpu.close())

testAgreement('webgpu with default limits', gpu)
