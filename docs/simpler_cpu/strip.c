/* A Vulkan layer for SAPIEN 2.2.2 on a driver without VK_KHR_external_semaphore_fd, such as lavapipe before Mesa 26.2.
 *
 * SAPIEN asks for that extension when it makes a device, fails without it, and draws without it. The layer takes the
 * name out of the request where the driver does not offer it, and changes nothing else.
 *
 *     gcc -O2 -fPIC -shared -o libvk_strip.so strip.c        (needs libvulkan-dev)
 */
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

static const char *EXTENSION = "VK_KHR_external_semaphore_fd";
static PFN_vkGetInstanceProcAddr next_instance; /* of the layer below, or the driver */
static PFN_vkGetDeviceProcAddr next_device;
static VkInstance instance;

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *memory, VkInstance *made) {
    VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
    while (link &&
           !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
        link = (VkLayerInstanceCreateInfo *)link->pNext;
    if (!link)
        return VK_ERROR_INITIALIZATION_FAILED;
    next_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)next_instance(VK_NULL_HANDLE, "vkCreateInstance");
    VkResult result = create(info, memory, made);
    if (result == VK_SUCCESS)
        instance = *made;
    return result;
}

static int offered(VkPhysicalDevice physical) {
    PFN_vkEnumerateDeviceExtensionProperties list = (PFN_vkEnumerateDeviceExtensionProperties)next_instance(
        instance, "vkEnumerateDeviceExtensionProperties");
    uint32_t count = 0;
    list(physical, NULL, &count, NULL);
    VkExtensionProperties *found = calloc(count ? count : 1, sizeof *found);
    list(physical, NULL, &count, found);
    int has = 0;
    for (uint32_t i = 0; i < count; i++)
        has = has || !strcmp(found[i].extensionName, EXTENSION);
    free(found);
    return has;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *memory, VkDevice *made) {
    VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
    while (link &&
           !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
        link = (VkLayerDeviceCreateInfo *)link->pNext;
    if (!link)
        return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr below = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    int has = offered(physical);
    VkDeviceCreateInfo changed = *info;
    const char **names = calloc(info->enabledExtensionCount + 1, sizeof *names);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
        if (has || strcmp(info->ppEnabledExtensionNames[i], EXTENSION))
            names[kept++] = info->ppEnabledExtensionNames[i];
    changed.ppEnabledExtensionNames = names;
    changed.enabledExtensionCount = kept;
    VkResult result = ((PFN_vkCreateDevice)below(instance, "vkCreateDevice"))(physical, &changed, memory, made);
    free(names);
    return result;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL of_device(VkDevice device, const char *name) {
    if (!strcmp(name, "vkGetDeviceProcAddr"))
        return (PFN_vkVoidFunction)of_device;
    return next_device(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL of_instance(VkInstance asked, const char *name) {
    if (!strcmp(name, "vkGetInstanceProcAddr"))
        return (PFN_vkVoidFunction)of_instance;
    if (!strcmp(name, "vkCreateInstance"))
        return (PFN_vkVoidFunction)create_instance;
    if (!strcmp(name, "vkCreateDevice"))
        return (PFN_vkVoidFunction)create_device;
    if (!strcmp(name, "vkGetDeviceProcAddr"))
        return (PFN_vkVoidFunction)of_device;
    return next_instance ? next_instance(asked, name) : NULL;
}

__attribute__((visibility("default"))) VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *version) {
    if (version->loaderLayerInterfaceVersion > 2)
        version->loaderLayerInterfaceVersion = 2;
    version->pfnGetInstanceProcAddr = of_instance;
    version->pfnGetDeviceProcAddr = of_device;
    version->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
